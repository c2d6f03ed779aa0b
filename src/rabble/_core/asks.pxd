from rabble._core.ask cimport Ask
from rabble._core.dispatch cimport Entry
from rabble._core.envelope cimport Envelope
from rabble._core.executor cimport Executor
from rabble._core.ids cimport NodeId
from rabble._core.requests cimport Asked
from rabble._core.timers cimport Timer

# A life asks: the request is the executor's follow-up. (None: that life is over by now.)
cdef int begin_ask(Executor executor, Ask ask, Envelope envelope, Entry entry) except -1
# A reply came, or why none comes.
cdef int take_answer(Executor executor, Asked asked, Envelope envelope) except -1
# Its time is over, and the timer has its turn.
cdef int expire_ask(Executor executor, Asked asked, Timer timer) except -1
# The connection to a node ended: who has a request there does not answer it.
cdef int end_asks_of(Executor executor, NodeId node, str why) except -1
# The pid that requests of processes come from has an entry.
cdef int have_asker(Executor executor) except -1
