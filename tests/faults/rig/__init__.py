"""The fault rig: nodes on hosts of their own, and everything that can go wrong between them.

    netns     hosts as network namespaces on a bridge; cuts, rejects, black holes
    switch    a second network between the same hosts, through a process that spoils packets
    line      what it does to them: the decisions alone
    proxy     a TCP proxy on loopback, for runs without root
    process   operating-system processes: readiness, signals, what they use, how they ended
    limits    rlimits and control groups
    schedule  a seeded list of faults, printed and replayable
    marks     for tests that cannot run everywhere

Nothing here knows rabble: what is started in a host is any program that prints a line when it is
ready. Traffic stays in the namespaces, which have no way out.
"""
