# Byte order: numbers as they travel, in frames and in msgpack: big-endian, at any address.

from libc.stdint cimport uint32_t, uint64_t

cdef extern from *:
    """
    #ifndef RABBLE_BYTE_ORDER
    #define RABBLE_BYTE_ORDER
    #include <string.h>
    static inline uint32_t rabble_load_16(const unsigned char *p) {
        uint16_t v; memcpy(&v, p, 2); return __builtin_bswap16(v);
    }
    static inline uint32_t rabble_load_32(const unsigned char *p) {
        uint32_t v; memcpy(&v, p, 4); return __builtin_bswap32(v);
    }
    static inline uint64_t rabble_load_64(const unsigned char *p) {
        uint64_t v; memcpy(&v, p, 8); return __builtin_bswap64(v);
    }
    static inline void rabble_store_16(unsigned char *p, uint32_t n) {
        uint16_t v = __builtin_bswap16((uint16_t)n); memcpy(p, &v, 2);
    }
    static inline void rabble_store_32(unsigned char *p, uint32_t n) {
        uint32_t v = __builtin_bswap32(n); memcpy(p, &v, 4);
    }
    static inline void rabble_store_64(unsigned char *p, uint64_t n) {
        uint64_t v = __builtin_bswap64(n); memcpy(p, &v, 8);
    }
    #endif
    """
    uint32_t load_16 "rabble_load_16"(const unsigned char* p) noexcept nogil
    uint32_t load_32 "rabble_load_32"(const unsigned char* p) noexcept nogil
    uint64_t load_64 "rabble_load_64"(const unsigned char* p) noexcept nogil
    void store_16 "rabble_store_16"(unsigned char* p, uint32_t n) noexcept nogil
    void store_32 "rabble_store_32"(unsigned char* p, uint32_t n) noexcept nogil
    void store_64 "rabble_store_64"(unsigned char* p, uint64_t n) noexcept nogil
