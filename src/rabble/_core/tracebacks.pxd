# One place of a traceback, in front of those in `following`, with a frame that never ran.
cpdef object traceback_entry(object following, object code, dict namespace, int line)
