from rabble._core.client_desk cimport ClientDesk
from rabble._core.client_server cimport ClientServer

cdef class ClientReceiver:
    cdef ClientDesk desk
    cdef ClientServer server
