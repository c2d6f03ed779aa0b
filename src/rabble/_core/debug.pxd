# Counters of live objects, which the debug build keeps and no other.
