"""MACs with a key for each message: ChaCha20 makes the key, Poly1305 the tag (RFC 8439, 2.3-2.6).

Both take the same steps whatever the secrets are, and tags are compared in one go.

Poly1305 is computed with limbs of 64 bits; where the processor has AVX2, four blocks at a time with
limbs of 26; and where it has AVX-512 with IFMA, eight at a time with limbs of 44. That takes two
fifths and a fifth of the time, which for large messages is what counts.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from rabble._core.linux cimport iovec

__all__ = ["chacha20_block", "one_time_key", "poly1305"]

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    #ifndef __SIZEOF_INT128__
    #error "rabble needs a compiler and a machine of 64 bits: Poly1305 is computed in 128"
    #endif

    typedef unsigned __int128 rabble_u128;

    #if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    #define RABBLE_LITTLE_32(x) __builtin_bswap32(x)
    #define RABBLE_LITTLE_64(x) __builtin_bswap64(x)
    #else
    #define RABBLE_LITTLE_32(x) (x)
    #define RABBLE_LITTLE_64(x) (x)
    #endif

    static inline uint32_t rabble_le_32(const uint8_t *p) {
        uint32_t x;
        memcpy(&x, p, 4);
        return RABBLE_LITTLE_32(x);
    }
    static inline uint64_t rabble_le_64(const uint8_t *p) {
        uint64_t x;
        memcpy(&x, p, 8);
        return RABBLE_LITTLE_64(x);
    }
    static inline void rabble_store_le_32(uint8_t *p, uint32_t x) {
        x = RABBLE_LITTLE_32(x);
        memcpy(p, &x, 4);
    }
    static inline void rabble_store_le_64(uint8_t *p, uint64_t x) {
        x = RABBLE_LITTLE_64(x);
        memcpy(p, &x, 8);
    }

    /* ChaCha20: RFC 8439, 2.3. */

    #define RABBLE_TURN(x, n) ((x) << (n) | (x) >> (32 - (n)))
    #define RABBLE_QUARTER(a, b, c, d) \\
        a += b; d ^= a; d = RABBLE_TURN(d, 16); \\
        c += d; b ^= c; b = RABBLE_TURN(b, 12); \\
        a += b; d ^= a; d = RABBLE_TURN(d, 8); \\
        c += d; b ^= c; b = RABBLE_TURN(b, 7);

    /* The first so many words of a block. */
    static void rabble_chacha20(
        uint8_t *out, int words, const uint8_t *key, uint32_t counter, const uint8_t *nonce
    ) {
        uint32_t begin[16] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574};
        uint32_t x[16];
        int i;
        for (i = 0; i < 8; i++)
            begin[4 + i] = rabble_le_32(key + 4 * i);
        begin[12] = counter;
        for (i = 0; i < 3; i++)
            begin[13 + i] = rabble_le_32(nonce + 4 * i);
        memcpy(x, begin, sizeof(x));
        for (i = 0; i < 10; i++) {
            RABBLE_QUARTER(x[0], x[4], x[8], x[12])
            RABBLE_QUARTER(x[1], x[5], x[9], x[13])
            RABBLE_QUARTER(x[2], x[6], x[10], x[14])
            RABBLE_QUARTER(x[3], x[7], x[11], x[15])
            RABBLE_QUARTER(x[0], x[5], x[10], x[15])
            RABBLE_QUARTER(x[1], x[6], x[11], x[12])
            RABBLE_QUARTER(x[2], x[7], x[8], x[13])
            RABBLE_QUARTER(x[3], x[4], x[9], x[14])
        }
        for (i = 0; i < words; i++)
            rabble_store_le_32(out + 4 * i, x[i] + begin[i]);
    }

    /* Poly1305: RFC 8439, 2.5. The sum is h0 + h1 * 2**64 + h2 * 2**128, modulo 2**130 - 5. */

    typedef struct {
        uint64_t r0, r1;            /* what the sum is multiplied by after each block ... */
        uint64_t fold;              /* ... and r1 * 5 / 4, for what exceeds 2**130 */
        uint64_t h0, h1, h2;
        uint64_t pad0, pad1;        /* what is added at the end */
        int wide;                   /* how many blocks may be taken at a time: 1, 4 or 8 */
        size_t begun;               /* bytes of a block that is not complete */
        uint8_t block[16];
    } rabble_poly1305;

    static void rabble_poly1305_begin(rabble_poly1305 *p, const uint8_t *key, int wide) {
        p->r0 = rabble_le_64(key) & UINT64_C(0x0ffffffc0fffffff);
        p->r1 = rabble_le_64(key + 8) & UINT64_C(0x0ffffffc0ffffffc);
        p->fold = p->r1 + (p->r1 >> 2);
        p->h0 = p->h1 = p->h2 = 0;
        p->pad0 = rabble_le_64(key + 16);
        p->pad1 = rabble_le_64(key + 24);
        p->begun = 0;
        p->wide = wide;
    }

    /* Add whole blocks. `top` is what stands above their 16 bytes: 1, but 0 for the last one if
       that is padded. */
    static void rabble_poly1305_blocks(
        rabble_poly1305 *p, const uint8_t *data, size_t size, uint64_t top
    ) {
        uint64_t r0 = p->r0, r1 = p->r1, fold = p->fold;
        uint64_t h0 = p->h0, h1 = p->h1, h2 = p->h2, over;
        rabble_u128 low, high;
        for (; size >= 16; data += 16, size -= 16) {
            low = (rabble_u128)h0 + rabble_le_64(data);
            high = (rabble_u128)h1 + rabble_le_64(data + 8) + (uint64_t)(low >> 64);
            h0 = (uint64_t)low;
            h1 = (uint64_t)high;
            h2 += (uint64_t)(high >> 64) + top;
            low = (rabble_u128)h0 * r0 + (rabble_u128)h1 * fold;
            high = (rabble_u128)h0 * r1 + (rabble_u128)h1 * r0 + h2 * fold;
            high += (uint64_t)(low >> 64);
            h2 = h2 * r0 + (uint64_t)(high >> 64);
            /* 4 * 2**128 is 5. */
            over = (h2 >> 2) + (h2 & ~UINT64_C(3));
            h2 &= 3;
            low = (rabble_u128)(uint64_t)low + over;
            h0 = (uint64_t)low;
            high = (rabble_u128)(uint64_t)high + (uint64_t)(low >> 64);
            h1 = (uint64_t)high;
            h2 += (uint64_t)(high >> 64);
        }
        p->h0 = h0;
        p->h1 = h1;
        p->h2 = h2;
    }

    #if defined(__x86_64__)
    #include <immintrin.h>

    #define RABBLE_26 UINT64_C(0x3ffffff)

    static void rabble_split_26(uint64_t *to, uint64_t x0, uint64_t x1, uint64_t x2) {
        to[0] = x0 & RABBLE_26;
        to[1] = x0 >> 26 & RABBLE_26;
        to[2] = (x0 >> 52 | x1 << 12) & RABBLE_26;
        to[3] = x1 >> 14 & RABBLE_26;
        to[4] = x1 >> 40 | x2 << 24;
    }

    static void rabble_carry_26(uint64_t *x) {
        int i;
        for (i = 0; i < 4; i++) {
            x[i + 1] += x[i] >> 26;
            x[i] &= RABBLE_26;
        }
        x[0] += 5 * (x[4] >> 26);
        x[4] &= RABBLE_26;
        x[1] += x[0] >> 26;
        x[0] &= RABBLE_26;
    }

    static void rabble_multiply_26(uint64_t *to, const uint64_t *a, const uint64_t *b) {
        uint64_t x[5] = {0};
        int i, k;
        for (i = 0; i < 5; i++)
            for (k = 0; k < 5; k++)
                x[(i + k) % 5] += a[i] * b[k] * (i + k < 5 ? 1 : 5);
        rabble_carry_26(x);
        memcpy(to, x, sizeof(x));
    }

    #define RABBLE_X __m256i
    #define RABBLE_ADD _mm256_add_epi64
    #define RABBLE_MUL _mm256_mul_epu32
    #define RABBLE_AND _mm256_and_si256
    #define RABBLE_OR _mm256_or_si256
    #define RABBLE_LEFT _mm256_slli_epi64
    #define RABBLE_RIGHT _mm256_srli_epi64

    __attribute__((target("avx2")))
    static inline RABBLE_X rabble_sum_5(
        RABBLE_X a0, RABBLE_X b0, RABBLE_X a1, RABBLE_X b1, RABBLE_X a2, RABBLE_X b2,
        RABBLE_X a3, RABBLE_X b3, RABBLE_X a4, RABBLE_X b4
    ) {
        return RABBLE_ADD(
            RABBLE_ADD(RABBLE_MUL(a0, b0), RABBLE_MUL(a1, b1)),
            RABBLE_ADD(
                RABBLE_ADD(RABBLE_MUL(a2, b2), RABBLE_MUL(a3, b3)), RABBLE_MUL(a4, b4)
            )
        );
    }

    /* What h * r is, limb by limb, modulo 2**130 - 5; f is 5 * r. Limbs of h have 28 bits at most,
       those of r 26. */
    __attribute__((target("avx2")))
    static inline void rabble_multiply_wide(
        RABBLE_X *d, const RABBLE_X *h, const RABBLE_X *r, const RABBLE_X *f
    ) {
        d[0] = rabble_sum_5(h[0], r[0], h[1], f[4], h[2], f[3], h[3], f[2], h[4], f[1]);
        d[1] = rabble_sum_5(h[0], r[1], h[1], r[0], h[2], f[4], h[3], f[3], h[4], f[2]);
        d[2] = rabble_sum_5(h[0], r[2], h[1], r[1], h[2], r[0], h[3], f[4], h[4], f[3]);
        d[3] = rabble_sum_5(h[0], r[3], h[1], r[2], h[2], r[1], h[3], r[0], h[4], f[4]);
        d[4] = rabble_sum_5(h[0], r[4], h[1], r[3], h[2], r[2], h[3], r[1], h[4], r[0]);
    }

    /* Add whole blocks, four at a time: each lane has every fourth of them, and is multiplied by
       r**4 after each. At the end by r**4, r**3, r**2 and r, and all are added. Returns how many
       bytes that were. */
    __attribute__((target("avx2")))
    static size_t rabble_poly1305_wide(rabble_poly1305 *p, const uint8_t *data, size_t size) {
        const RABBLE_X mask = _mm256_set1_epi64x(RABBLE_26), top = _mm256_set1_epi64x(1 << 24);
        const uint8_t *end = data + (size & ~(size_t)63);
        uint64_t r[4][5], h[5], lanes[4];
        RABBLE_X R[5], F[5], H[5], D[5], a, b, low, high, c;
        rabble_u128 sum;
        int i;
        size = end - data;
        rabble_split_26(r[0], p->r0, p->r1, 0);
        rabble_multiply_26(r[1], r[0], r[0]);
        rabble_multiply_26(r[2], r[1], r[0]);
        rabble_multiply_26(r[3], r[1], r[1]);
        rabble_split_26(h, p->h0, p->h1, p->h2);
        for (i = 0; i < 5; i++) {
            R[i] = _mm256_set1_epi64x(r[3][i]);
            F[i] = _mm256_set1_epi64x(5 * r[3][i]);
            H[i] = _mm256_set_epi64x(0, 0, 0, h[i]);
        }
        for (;;) {
            a = _mm256_loadu_si256((const RABBLE_X *)data);
            b = _mm256_loadu_si256((const RABBLE_X *)(data + 32));
            /* The lanes have the blocks 0, 2, 1 and 3. */
            low = _mm256_unpacklo_epi64(a, b);
            high = _mm256_unpackhi_epi64(a, b);
            H[0] = RABBLE_ADD(H[0], RABBLE_AND(low, mask));
            H[1] = RABBLE_ADD(H[1], RABBLE_AND(RABBLE_RIGHT(low, 26), mask));
            c = RABBLE_OR(RABBLE_RIGHT(low, 52), RABBLE_LEFT(high, 12));
            H[2] = RABBLE_ADD(H[2], RABBLE_AND(c, mask));
            H[3] = RABBLE_ADD(H[3], RABBLE_AND(RABBLE_RIGHT(high, 14), mask));
            H[4] = RABBLE_ADD(H[4], RABBLE_OR(RABBLE_RIGHT(high, 40), top));
            data += 64;
            if (data == end)
                break;
            rabble_multiply_wide(D, H, R, F);
            /* Two chains of carries at a time: 0 to 1 to 2 to 3, and 3 to 4 to 0. */
            D[1] = RABBLE_ADD(D[1], RABBLE_RIGHT(D[0], 26));
            D[4] = RABBLE_ADD(D[4], RABBLE_RIGHT(D[3], 26));
            D[0] = RABBLE_AND(D[0], mask);
            D[3] = RABBLE_AND(D[3], mask);
            D[2] = RABBLE_ADD(D[2], RABBLE_RIGHT(D[1], 26));
            c = RABBLE_RIGHT(D[4], 26);
            D[0] = RABBLE_ADD(D[0], RABBLE_ADD(c, RABBLE_LEFT(c, 2)));
            D[3] = RABBLE_ADD(D[3], RABBLE_RIGHT(D[2], 26));
            H[1] = RABBLE_ADD(RABBLE_AND(D[1], mask), RABBLE_RIGHT(D[0], 26));
            H[0] = RABBLE_AND(D[0], mask);
            H[2] = RABBLE_AND(D[2], mask);
            H[4] = RABBLE_ADD(RABBLE_AND(D[4], mask), RABBLE_RIGHT(D[3], 26));
            H[3] = RABBLE_AND(D[3], mask);
        }
        for (i = 0; i < 5; i++) {
            R[i] = _mm256_set_epi64x(r[0][i], r[2][i], r[1][i], r[3][i]);
            F[i] = RABBLE_ADD(R[i], RABBLE_LEFT(R[i], 2));
        }
        rabble_multiply_wide(D, H, R, F);
        for (i = 0; i < 5; i++) {
            _mm256_storeu_si256((RABBLE_X *)lanes, D[i]);
            h[i] = lanes[0] + lanes[1] + lanes[2] + lanes[3];
        }
        rabble_carry_26(h);
        sum = (rabble_u128)h[0] + ((rabble_u128)h[1] << 26) + ((rabble_u128)h[2] << 52);
        p->h0 = (uint64_t)sum;
        sum = (sum >> 64) + ((rabble_u128)h[3] << 14) + ((rabble_u128)h[4] << 40);
        p->h1 = (uint64_t)sum;
        p->h2 = (uint64_t)(sum >> 64);
        return size;
    }

    /* The same eight at a time, with limbs of 44, 44 and 42 bits: IFMA multiplies 52 by 52 bits and
       adds the lower or the upper 52 bits of that. */
    #define RABBLE_44 ((UINT64_C(1) << 44) - 1)
    #define RABBLE_42 ((UINT64_C(1) << 42) - 1)
    #define RABBLE_IFMA __attribute__((target("avx512f,avx512ifma")))

    static void rabble_multiply_44(uint64_t *to, const uint64_t *a, const uint64_t *b) {
        /* 2**132 is 20. */
        uint64_t fold1 = 20 * b[1], fold2 = 20 * b[2];
        rabble_u128 x0 = (rabble_u128)a[0] * b[0] + (rabble_u128)a[1] * fold2
            + (rabble_u128)a[2] * fold1;
        rabble_u128 x1 = (rabble_u128)a[0] * b[1] + (rabble_u128)a[1] * b[0]
            + (rabble_u128)a[2] * fold2;
        rabble_u128 x2 = (rabble_u128)a[0] * b[2] + (rabble_u128)a[1] * b[1]
            + (rabble_u128)a[2] * b[0];
        x1 += (uint64_t)(x0 >> 44);
        x2 += (uint64_t)(x1 >> 44);
        to[0] = ((uint64_t)x0 & RABBLE_44) + 5 * (uint64_t)(x2 >> 42);
        to[1] = ((uint64_t)x1 & RABBLE_44) + (to[0] >> 44);
        to[0] &= RABBLE_44;
        to[2] = (uint64_t)x2 & RABBLE_42;
    }

    static void rabble_split_44(uint64_t *to, uint64_t x0, uint64_t x1, uint64_t x2) {
        to[0] = x0 & RABBLE_44;
        to[1] = (x0 >> 44 | x1 << 20) & RABBLE_44;
        to[2] = x1 >> 24 | x2 << 40;
    }

    /* h * r: the product's limbs are l and, 52 bits higher, u. */
    RABBLE_IFMA
    static inline void rabble_multiply_ifma(
        __m512i *l, __m512i *u, const __m512i *h, const __m512i *r, __m512i fold1, __m512i fold2
    ) {
        const __m512i *factors[3][3] = {
            {&r[0], &fold2, &fold1}, {&r[1], &r[0], &fold2}, {&r[2], &r[1], &r[0]}
        };
        int i, k;
        for (i = 0; i < 3; i++) {
            l[i] = u[i] = _mm512_setzero_si512();
            for (k = 0; k < 3; k++) {
                l[i] = _mm512_madd52lo_epu64(l[i], h[k], *factors[i][k]);
                u[i] = _mm512_madd52hi_epu64(u[i], h[k], *factors[i][k]);
            }
        }
    }

    RABBLE_IFMA
    static size_t rabble_poly1305_ifma(rabble_poly1305 *p, const uint8_t *data, size_t size) {
        /* Which block of eight each lane has. */
        static const int places[8] = {0, 4, 1, 5, 2, 6, 3, 7};
        const __m512i mask44 = _mm512_set1_epi64(RABBLE_44), mask42 = _mm512_set1_epi64(RABBLE_42);
        const __m512i top = _mm512_set1_epi64(INT64_C(1) << 40);
        const uint8_t *end = data + (size & ~(size_t)127);
        uint64_t r[8][3], powers[5][8], lanes[8], h[3];
        __m512i R[3], L[3], U[3], H[3], fold1, fold2, a, b, low, high, c;
        rabble_u128 sums[3], sum;
        int i, k;
        size = end - data;
        rabble_split_44(r[0], p->r0, p->r1, 0);
        for (i = 1; i < 8; i++)
            rabble_multiply_44(r[i], r[i - 1], r[0]);
        rabble_split_44(h, p->h0, p->h1, p->h2);
        for (i = 0; i < 3; i++) {
            R[i] = _mm512_set1_epi64(r[7][i]);
            H[i] = _mm512_set_epi64(0, 0, 0, 0, 0, 0, 0, h[i]);
        }
        fold1 = _mm512_set1_epi64(20 * r[7][1]);
        fold2 = _mm512_set1_epi64(20 * r[7][2]);
        for (;;) {
            a = _mm512_loadu_si512(data);
            b = _mm512_loadu_si512(data + 64);
            low = _mm512_unpacklo_epi64(a, b);
            high = _mm512_unpackhi_epi64(a, b);
            c = _mm512_or_si512(_mm512_srli_epi64(low, 44), _mm512_slli_epi64(high, 20));
            H[0] = _mm512_add_epi64(H[0], _mm512_and_si512(low, mask44));
            H[1] = _mm512_add_epi64(H[1], _mm512_and_si512(c, mask44));
            c = _mm512_or_si512(_mm512_srli_epi64(high, 24), top);
            H[2] = _mm512_add_epi64(H[2], c);
            data += 128;
            if (data == end)
                break;
            rabble_multiply_ifma(L, U, H, R, fold1, fold2);
            c = _mm512_add_epi64(_mm512_srli_epi64(L[0], 44), _mm512_slli_epi64(U[0], 8));
            L[1] = _mm512_add_epi64(L[1], c);
            c = _mm512_add_epi64(_mm512_srli_epi64(L[1], 44), _mm512_slli_epi64(U[1], 8));
            L[2] = _mm512_add_epi64(L[2], c);
            c = _mm512_add_epi64(_mm512_srli_epi64(L[2], 42), _mm512_slli_epi64(U[2], 10));
            c = _mm512_add_epi64(c, _mm512_slli_epi64(c, 2));
            L[0] = _mm512_add_epi64(_mm512_and_si512(L[0], mask44), c);
            H[0] = _mm512_and_si512(L[0], mask44);
            c = _mm512_srli_epi64(L[0], 44);
            H[1] = _mm512_add_epi64(_mm512_and_si512(L[1], mask44), c);
            H[2] = _mm512_and_si512(L[2], mask42);
        }
        for (i = 0; i < 8; i++) {
            for (k = 0; k < 3; k++)
                powers[k][i] = r[7 - places[i]][k];
            powers[3][i] = 20 * powers[1][i];
            powers[4][i] = 20 * powers[2][i];
        }
        for (k = 0; k < 3; k++)
            R[k] = _mm512_loadu_si512(powers[k]);
        fold1 = _mm512_loadu_si512(powers[3]);
        fold2 = _mm512_loadu_si512(powers[4]);
        rabble_multiply_ifma(L, U, H, R, fold1, fold2);
        for (k = 0; k < 3; k++) {
            sums[k] = 0;
            _mm512_storeu_si512(lanes, L[k]);
            for (i = 0; i < 8; i++)
                sums[k] += lanes[i];
            _mm512_storeu_si512(lanes, U[k]);
            for (i = 0; i < 8; i++)
                sums[k] += (rabble_u128)lanes[i] << 52;
        }
        sums[1] += sums[0] >> 44;
        sums[2] += sums[1] >> 44;
        sums[0] = (sums[0] & RABBLE_44) + 5 * (sums[2] >> 42);
        sums[1] = (sums[1] & RABBLE_44) + (sums[0] >> 44);
        sum = (sums[0] & RABBLE_44) + (sums[1] << 44);
        p->h0 = (uint64_t)sum;
        sum = (sum >> 64) + ((sums[2] & RABBLE_42) << 24);
        p->h1 = (uint64_t)sum;
        p->h2 = (uint64_t)(sum >> 64);
        return size;
    }

    static int rabble_widest(void) {
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512ifma"))
            return 8;
        return __builtin_cpu_supports("avx2") ? 4 : 1;
    }
    #else
    static size_t rabble_poly1305_wide(rabble_poly1305 *p, const uint8_t *data, size_t size) {
        return 0;
    }
    static size_t rabble_poly1305_ifma(rabble_poly1305 *p, const uint8_t *data, size_t size) {
        return 0;
    }
    static int rabble_widest(void) {
        return 1;
    }
    #endif

    /* From so many bytes on the powers of r are worth their while. */
    #define RABBLE_WIDE_MIN 512
    #define RABBLE_IFMA_MIN 2048

    static void rabble_poly1305_add(rabble_poly1305 *p, const uint8_t *data, size_t size) {
        size_t taken;
        if (p->begun) {
            taken = 16 - p->begun < size ? 16 - p->begun : size;
            memcpy(p->block + p->begun, data, taken);
            p->begun += taken;
            data += taken;
            size -= taken;
            if (p->begun < 16)
                return;
            rabble_poly1305_blocks(p, p->block, 16, 1);
            p->begun = 0;
        }
        taken = 0;
        if (p->wide >= 8 && size >= RABBLE_IFMA_MIN)
            taken = rabble_poly1305_ifma(p, data, size);
        else if (p->wide >= 4 && size >= RABBLE_WIDE_MIN)
            taken = rabble_poly1305_wide(p, data, size);
        data += taken;
        size -= taken;
        rabble_poly1305_blocks(p, data, size, 1);
        p->begun = size & 15;
        if (p->begun)
            memcpy(p->block, data + (size - p->begun), p->begun);
    }

    static void rabble_poly1305_end(rabble_poly1305 *p, uint8_t *tag) {
        uint64_t h0, h1, h2, g0, g1, g2, chosen;
        rabble_u128 sum;
        if (p->begun) {
            p->block[p->begun] = 1;
            memset(p->block + p->begun + 1, 0, 15 - p->begun);
            rabble_poly1305_blocks(p, p->block, 16, 0);
        }
        /* Below 2**130 first, then below 2**130 - 5: by choosing, not by branching. */
        sum = (rabble_u128)p->h0 + 5 * (p->h2 >> 2);
        h0 = (uint64_t)sum;
        sum = (rabble_u128)p->h1 + (uint64_t)(sum >> 64);
        h1 = (uint64_t)sum;
        h2 = (p->h2 & 3) + (uint64_t)(sum >> 64);
        sum = (rabble_u128)h0 + 5;
        g0 = (uint64_t)sum;
        sum = (rabble_u128)h1 + (uint64_t)(sum >> 64);
        g1 = (uint64_t)sum;
        g2 = h2 + (uint64_t)(sum >> 64);
        chosen = UINT64_C(0) - (g2 >> 2 != 0);
        h0 = (h0 & ~chosen) | (g0 & chosen);
        h1 = (h1 & ~chosen) | (g1 & chosen);
        sum = (rabble_u128)h0 + p->pad0;
        rabble_store_le_64(tag, (uint64_t)sum);
        rabble_store_le_64(tag + 8, h1 + p->pad1 + (uint64_t)(sum >> 64));
    }
    """
    ctypedef struct Poly1305 "rabble_poly1305":
        pass
    int widest "rabble_widest" () noexcept nogil
    void chacha20 "rabble_chacha20" (
        uint8_t* out, int words, const uint8_t* key, uint32_t counter, const uint8_t* nonce
    ) noexcept nogil
    void store_le_64 "rabble_store_le_64" (uint8_t* p, uint64_t x) noexcept nogil
    void poly1305_begin "rabble_poly1305_begin" (
        Poly1305* p, const uint8_t* key, int wide
    ) noexcept nogil
    void poly1305_add "rabble_poly1305_add" (
        Poly1305* p, const uint8_t* data, size_t size
    ) noexcept nogil
    void poly1305_end "rabble_poly1305_end" (Poly1305* p, uint8_t* tag) noexcept nogil

cdef enum:
    ONE_TIME_KEY_BYTES = 32
    NONCE_BYTES = 12


cdef void make_one_time_key(uint8_t* to, const uint8_t* key, uint64_t number) noexcept nogil:
    """RFC 8439, 2.6, with a nonce that is the number of the message: 4 zeros, and 8 bytes of it."""
    cdef uint8_t nonce[NONCE_BYTES]
    memset(nonce, 0, 4)
    store_le_64(nonce + 4, number)
    chacha20(to, ONE_TIME_KEY_BYTES // 4, key, 0, nonce)


cdef void make_tag(
    uint8_t* tag, const uint8_t* key, uint64_t number, const iovec* pieces, int count
) noexcept nogil:
    cdef uint8_t own_key[ONE_TIME_KEY_BYTES]
    cdef Poly1305 sum
    cdef int n
    make_one_time_key(own_key, key, number)
    poly1305_begin(&sum, own_key, widest())
    for n in range(count):
        poly1305_add(&sum, <const uint8_t*>pieces[n].iov_base, pieces[n].iov_len)
    poly1305_end(&sum, tag)


cdef bint tags_equal(const uint8_t* one, const uint8_t* other) noexcept nogil:
    cdef uint64_t a[2]
    cdef uint64_t b[2]
    memcpy(a, one, TAG_BYTES)
    memcpy(b, other, TAG_BYTES)
    return ((a[0] ^ b[0]) | (a[1] ^ b[1])) == 0


# For tests.

cdef const uint8_t* bytes_of(bytes data, str name, Py_ssize_t size) except NULL:
    if PyBytes_GET_SIZE(data) != size:
        raise ValueError(f"{name} must be {size} bytes, not {PyBytes_GET_SIZE(data)}")
    return <const uint8_t*>PyBytes_AS_STRING(data)


def chacha20_block(bytes key not None, uint32_t counter, bytes nonce not None):
    """A block of ChaCha20: the 64 bytes of RFC 8439, 2.3.

    :raises ValueError: if the key is not of 32 bytes, or the nonce not of 12.
    """
    cdef uint8_t block[64]
    chacha20(block, 16, bytes_of(key, "key", 32), counter, bytes_of(nonce, "nonce", NONCE_BYTES))
    return PyBytes_FromStringAndSize(<char*>block, 64)


def one_time_key(bytes key not None, uint64_t number):
    """The 32 bytes that the tag of that message is made with.

    :raises ValueError: if the key is not of 32 bytes.
    """
    cdef uint8_t made[ONE_TIME_KEY_BYTES]
    make_one_time_key(made, bytes_of(key, "key", MAC_KEY_BYTES), number)
    return PyBytes_FromStringAndSize(<char*>made, ONE_TIME_KEY_BYTES)


def poly1305(bytes key not None, *pieces, int wide=8):
    """The tag of bytes that follow each other: RFC 8439, 2.5.

    :param wide: how many blocks to take at a time at most, where the processor can: 1, 4 or 8.
    :raises ValueError: if the key is not of 32 bytes.
    """
    cdef uint8_t tag[TAG_BYTES]
    cdef Poly1305 sum
    poly1305_begin(&sum, bytes_of(key, "key", ONE_TIME_KEY_BYTES), min(wide, widest()))
    for piece in pieces:
        poly1305_add(
            &sum, <const uint8_t*>PyBytes_AS_STRING(<bytes?>piece), PyBytes_GET_SIZE(piece)
        )
    poly1305_end(&sum, tag)
    return PyBytes_FromStringAndSize(<char*>tag, TAG_BYTES)
