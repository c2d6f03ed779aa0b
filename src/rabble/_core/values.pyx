"""Everyday values: how those that msgpack has no type for are written, and what bytes of them are.

Each is an extension of `Ext` in `plan.pxd`; docs/internals/wire-protocol.md has the bodies. What
contains other values is the encoder's and the decoder's; here is what a body is by itself.

Nothing is imported or opened by a name from the wire: `zoneinfo` would look for one among modules,
so only the names that it lists itself are handed to it.
"""

from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from rabble._core.buffer_writer cimport put_ext_head
from rabble._core.byteorder cimport load_32, load_64, store_32, store_64
from rabble._core.failure cimport PyErr_GivenExceptionMatches, owned, take_failure
from rabble._core.plan cimport (
    EXT_BYTEARRAY, EXT_COMPLEX, EXT_DATE, EXT_DATETIME, EXT_DECIMAL, EXT_FRACTION, EXT_FROZENSET,
    EXT_RANGE, EXT_SET, EXT_TIME, EXT_TIMEDELTA, EXT_TIMEZONE, EXT_TUPLE, EXT_UUID,
    EXT_ZONEINFO,
)

import datetime
import decimal
import fractions
import math
import uuid
import zoneinfo

__all__ = []

cdef extern from *:
    """
    #include <datetime.h>
    #include <structmember.h>

    static int rabble_import_datetime(void) {
        PyDateTime_IMPORT;
        return PyDateTimeAPI == NULL ? -1 : 0;
    }

    static inline void rabble_put_16(unsigned char *p, int n) {
        p[0] = (unsigned char)(n >> 8);
        p[1] = (unsigned char)n;
    }

    static inline void rabble_put_date(unsigned char *p, PyObject *value) {
        rabble_put_16(p, PyDateTime_GET_YEAR(value));
        p[2] = (unsigned char)PyDateTime_GET_MONTH(value);
        p[3] = (unsigned char)PyDateTime_GET_DAY(value);
    }

    #define RABBLE_PUT_TIME(p, value, WHAT) do { \\
            int us = WHAT##_GET_MICROSECOND(value); \\
            (p)[0] = (unsigned char)WHAT##_GET_HOUR(value); \\
            (p)[1] = (unsigned char)WHAT##_GET_MINUTE(value); \\
            (p)[2] = (unsigned char)WHAT##_GET_SECOND(value); \\
            (p)[3] = (unsigned char)(us >> 16 | (WHAT##_GET_FOLD(value) ? 0x80 : 0)); \\
            rabble_put_16((p) + 4, us); \\
        } while (0)

    static inline void rabble_put_time(unsigned char *p, PyObject *value) {
        RABBLE_PUT_TIME(p, value, PyDateTime_TIME);
    }

    static inline void rabble_put_datetime(unsigned char *p, PyObject *value) {
        rabble_put_date(p, value);
        RABBLE_PUT_TIME(p + 4, value, PyDateTime_DATE);
    }

    static inline PyObject *rabble_zone_of(PyObject *value) {
        return PyDateTime_CheckExact(value) ? PyDateTime_DATE_GET_TZINFO(value)
                                            : PyDateTime_TIME_GET_TZINFO(value);
    }
    #define RABBLE_UTC (PyDateTimeAPI->TimeZone_UTC)

    /* All of these check what they are given. */
    #define RABBLE_US(p) (((p)[3] & 0x7f) << 16 | (p)[4] << 8 | (p)[5])
    #define RABBLE_TIME(p) (p)[0], (p)[1], (p)[2], RABBLE_US(p)
    static inline PyObject *rabble_new_date(const unsigned char *p) {
        return PyDateTimeAPI->Date_FromDate(
            p[0] << 8 | p[1], p[2], p[3], PyDateTimeAPI->DateType);
    }
    static inline PyObject *rabble_new_time(const unsigned char *p, PyObject *zone) {
        return PyDateTimeAPI->Time_FromTimeAndFold(
            RABBLE_TIME(p), zone, p[3] >> 7, PyDateTimeAPI->TimeType);
    }
    static inline PyObject *rabble_new_datetime(const unsigned char *p, PyObject *zone) {
        return PyDateTimeAPI->DateTime_FromDateAndTimeAndFold(
            p[0] << 8 | p[1], p[2], p[3], RABBLE_TIME(p + 4), zone, p[7] >> 7,
            PyDateTimeAPI->DateTimeType);
    }
    static inline PyObject *rabble_new_timedelta(int days, int seconds, int microseconds) {
        return PyDateTimeAPI->Delta_FromDelta(
            days, seconds, microseconds, 0, PyDateTimeAPI->DeltaType);
    }
    static inline PyObject *rabble_utc(void) {
        Py_INCREF(PyDateTimeAPI->TimeZone_UTC);
        return PyDateTimeAPI->TimeZone_UTC;
    }

    static inline int rabble_put_large(PyObject *value, unsigned char *p, Py_ssize_t size) {
    #if PY_VERSION_HEX >= 0x030D0000
        Py_ssize_t needed = PyLong_AsNativeBytes(value, p, size, Py_ASNATIVEBYTES_BIG_ENDIAN);
        if (needed > size) PyErr_SetString(PyExc_OverflowError, "int too big to convert");
        return needed < 0 || needed > size ? -1 : 0;
    #else
        return _PyLong_AsByteArray((PyLongObject *)value, p, (size_t)size, 0, 1);
    #endif
    }
    static inline PyObject *rabble_new_large(const unsigned char *p, Py_ssize_t n, int is_signed) {
    #if PY_VERSION_HEX >= 0x030D0000
        return PyLong_FromNativeBytes(
            p, (size_t)n, Py_ASNATIVEBYTES_BIG_ENDIAN
                | (is_signed ? 0 : Py_ASNATIVEBYTES_UNSIGNED_BUFFER));
    #else
        return _PyLong_FromByteArray(p, (size_t)n, 0, is_signed);
    #endif
    }

    /* Where a slot lies in instances of `cls`; -1 if that attribute is no slot of it. */
    static Py_ssize_t rabble_slot_of(PyObject *cls, const char *name) {
        PyObject *found = PyObject_GetAttrString(cls, name);
        Py_ssize_t offset = -1;
        if (found == NULL) {
            PyErr_Clear();
            return -1;
        }
        if (Py_TYPE(found) == &PyMemberDescr_Type && PyDescr_TYPE(found) == (PyTypeObject *)cls
            && ((PyMemberDescrObject *)found)->d_member->type == T_OBJECT_EX)
            offset = ((PyMemberDescrObject *)found)->d_member->offset;
        Py_DECREF(found);
        return offset;
    }

    /* An instance that has nothing yet, and what it then is given: __init__ is left out. */
    #define RABBLE_BARE(cls) (((PyTypeObject *)(cls))->tp_alloc((PyTypeObject *)(cls), 0))
    static inline int rabble_fill(
        PyObject *instance, Py_ssize_t offset, PyObject *name, PyObject *value
    ) {
        if (offset < 0) return PyObject_GenericSetAttr(instance, name, value);
        Py_INCREF(value);
        *(PyObject **)((char *)instance + offset) = value;
        return 0;
    }
    /* None if it was never given. */
    static inline PyObject *rabble_part(PyObject *instance, Py_ssize_t offset, PyObject *name) {
        PyObject *value;
        if (offset < 0) {
            value = PyObject_GenericGetAttr(instance, name);
            if (value != NULL || !PyErr_ExceptionMatches(PyExc_AttributeError)) return value;
            PyErr_Clear();
        } else value = *(PyObject **)((char *)instance + offset);
        if (value == NULL) value = Py_None;
        Py_INCREF(value);
        return value;
    }
    """
    int rabble_import_datetime() except -1
    void rabble_put_date(unsigned char* p, object value) noexcept
    void rabble_put_time(unsigned char* p, object value) noexcept
    void rabble_put_datetime(unsigned char* p, object value) noexcept
    int days_of "PyDateTime_DELTA_GET_DAYS" (object value) noexcept
    int seconds_of "PyDateTime_DELTA_GET_SECONDS" (object value) noexcept
    int microseconds_of "PyDateTime_DELTA_GET_MICROSECONDS" (object value) noexcept
    PyObject* rabble_zone_of(object value) noexcept     # borrowed
    PyObject* RABBLE_UTC
    object rabble_new_date(const unsigned char* p)
    PyObject* rabble_new_time(const unsigned char* p, object zone) noexcept
    PyObject* rabble_new_datetime(const unsigned char* p, object zone) noexcept
    object rabble_new_timedelta(int days, int seconds, int microseconds)
    object rabble_utc()
    int rabble_put_large(object value, unsigned char* p, Py_ssize_t size) except -1
    int rabble_put_large_or_not "rabble_put_large" (
        object value, unsigned char* p, Py_ssize_t size
    ) noexcept
    object rabble_new_large(const unsigned char* p, Py_ssize_t n, bint is_signed)
    Py_ssize_t rabble_slot_of(object cls, const char* name) noexcept
    object RABBLE_BARE(object cls)
    int rabble_fill(object instance, Py_ssize_t offset, object name, object value) except -1
    object rabble_part(object instance, Py_ssize_t offset, object name)

cdef extern from "Python.h":
    ctypedef struct Py_complex:
        double real
        double imag
    Py_complex PyComplex_AsCComplex(object value) noexcept
    object PyComplex_FromDoubles(double real, double imag)
    # NULL with its exception pending, for who calls it to look at.
    PyObject* PyObject_CallOneArg(object callee, object argument) noexcept
    str PyUnicode_DecodeASCII(const char* data, Py_ssize_t size, const char* errors)

cdef enum:
    SECONDS_PER_DAY = 86_400
    SECOND_US = 1_000_000
    EXPONENT_DIGITS_MAX = 19    # more make one that no Decimal has

# What is looked for in a value's class, and made: constants, as the imports are.
cdef object BYTEARRAY = bytearray
cdef object COMPLEX = complex
cdef object DATE = datetime.date
cdef object DATETIME = datetime.datetime
cdef object DECIMAL = decimal.Decimal
cdef object FRACTION = fractions.Fraction
cdef object FROZENSET = frozenset
cdef object RANGE = range
cdef object SAFE_UNKNOWN = uuid.SafeUUID.unknown
cdef object SET = set
cdef object TIME = datetime.time
cdef object TIMEDELTA = datetime.timedelta
cdef object TIMEZONE = datetime.timezone
cdef object TUPLE = tuple
cdef object UUID = uuid.UUID
cdef object ZONEINFO = zoneinfo.ZoneInfo
cdef object gcd = math.gcd
cdef Py_ssize_t UUID_INT = rabble_slot_of(uuid.UUID, b"int")
cdef Py_ssize_t UUID_SAFE = rabble_slot_of(uuid.UUID, b"is_safe")
cdef Py_ssize_t NUMERATOR = rabble_slot_of(fractions.Fraction, b"_numerator")
cdef Py_ssize_t DENOMINATOR = rabble_slot_of(fractions.Fraction, b"_denominator")
rabble_import_datetime()

cdef int code_of(object cls) noexcept:
    if cls is TUPLE:
        return EXT_TUPLE
    if cls is DATETIME:
        return EXT_DATETIME
    if cls is UUID:
        return EXT_UUID
    if cls is DECIMAL:
        return EXT_DECIMAL
    if cls is SET:
        return EXT_SET
    if cls is FROZENSET:
        return EXT_FROZENSET
    if cls is TIMEDELTA:
        return EXT_TIMEDELTA
    if cls is DATE:
        return EXT_DATE
    if cls is TIME:
        return EXT_TIME
    if cls is BYTEARRAY:
        return EXT_BYTEARRAY
    if cls is TIMEZONE:
        return EXT_TIMEZONE
    if cls is ZONEINFO:
        return EXT_ZONEINFO
    if cls is FRACTION:
        return EXT_FRACTION
    if cls is COMPLEX:
        return EXT_COMPLEX
    if cls is RANGE:
        return EXT_RANGE
    return 0


# How they are written.

cdef int put_moment(unsigned char* p, int code, object value, PyObject** zone) noexcept:
    cdef int size = DATETIME_BYTES if code == EXT_DATETIME else TIME_BYTES
    if code == EXT_DATETIME:
        rabble_put_datetime(p, value)
    else:
        rabble_put_time(p, value)
    zone[0] = rabble_zone_of(value)
    if zone[0] is RABBLE_UTC:
        # An extension of nothing.
        zone[0] = NULL
        return size + put_ext_head(p + size, EXT_TIMEZONE, 0)
    if zone[0] is <PyObject*>None:
        zone[0] = NULL
    return size


cdef int put_fixed(unsigned char* p, int code, object value) noexcept:
    cdef Py_complex number
    if code == EXT_DATE:
        rabble_put_date(p, value)
        return DATE_BYTES
    if code == EXT_TIMEDELTA:
        store_32(p, <uint32_t>days_of(value))
        store_32(p + 4, <uint32_t>seconds_of(value))
        store_32(p + 8, <uint32_t>microseconds_of(value))
        return TIMEDELTA_BYTES
    number = PyComplex_AsCComplex(value)
    put_double(p, number.real)
    put_double(p + 8, number.imag)
    return COMPLEX_BYTES


cdef inline void put_double(unsigned char* p, double number) noexcept:
    cdef uint64_t bits
    memcpy(&bits, &number, 8)
    store_64(p, bits)


cdef Py_ssize_t int_size(object value) except -1:
    cdef Py_ssize_t bits = (value if value >= 0 else ~value).bit_length()
    return bits // 8 + 1


cdef int put_large(unsigned char* p, Py_ssize_t size, object value) except -1:
    return rabble_put_large(value, p, size)


cdef bint put_uuid(unsigned char* p, object value) except -1:
    cdef unsigned char number[UUID_BYTES + 1]
    found = rabble_part(value, UUID_INT, "int")
    # Anybody can put another thing there.
    if type(found) is not int:
        return False
    if rabble_put_large_or_not(found, number, UUID_BYTES + 1) < 0:
        take_failure()
        return False
    memcpy(p, number + 1, UUID_BYTES)
    return number[0] == 0


cdef tuple parts_of(object fraction):
    return (
        rabble_part(fraction, NUMERATOR, "_numerator"),
        rabble_part(fraction, DENOMINATOR, "_denominator"),
    )


cdef tuple offset_of(object zone):
    cdef tuple arguments = zone.__getinitargs__()
    cdef object offset = arguments[0]
    cdef int64_t us = <int64_t>days_of(offset) * SECONDS_PER_DAY + seconds_of(offset)
    us = us * SECOND_US + microseconds_of(offset)
    return (us, arguments[1]) if len(arguments) > 1 else (us,)


# What bytes of them are.

cdef object parse_int(const unsigned char* data, Py_ssize_t size):
    if size < 9 or size == 9 and data[0] == 0:
        raise ValueError("a large int is one that 64 bits hold")
    if data[0] == 0 and data[1] < 0x80 or data[0] == 0xff and data[1] >= 0x80:
        raise ValueError("a large int has more bytes than it needs")
    return rabble_new_large(data, size, True)


cdef int check_body(Py_ssize_t size, Py_ssize_t wanted, str what) except -1:
    if size != wanted:
        raise ValueError(f"a {what} takes {wanted} bytes, not {size}")
    return 0


cdef object parse_date(const unsigned char* data, Py_ssize_t size):
    check_body(size, DATE_BYTES, "date")
    return rabble_new_date(data)


cdef object parse_timedelta(const unsigned char* data, Py_ssize_t size):
    check_body(size, TIMEDELTA_BYTES, "timedelta")
    cdef int32_t days = <int32_t>load_32(data)
    cdef uint32_t seconds = load_32(data + 4)
    cdef uint32_t microseconds = load_32(data + 8)
    if seconds >= SECONDS_PER_DAY or microseconds >= SECOND_US or (
        days < -999_999_999 or days > 999_999_999
    ):
        raise ValueError("a timedelta is not normalized, or has more than 999999999 days")
    return rabble_new_timedelta(days, seconds, microseconds)


cdef inline Py_ssize_t digits_end(
    const unsigned char* data, Py_ssize_t at, Py_ssize_t size
) noexcept:
    while at < size and 0x30 <= data[at] <= 0x39:
        at += 1
    return at


cdef inline bint has_word(
    const unsigned char* data, Py_ssize_t at, Py_ssize_t size, const char* word, Py_ssize_t n
) noexcept:
    return size - at >= n and memcmp(data + at, word, n) == 0


cdef bint is_decimal(const unsigned char* data, Py_ssize_t size) noexcept:
    """Whether it is what `str` makes of a Decimal, whose constructor takes much more."""
    cdef Py_ssize_t at = 0
    cdef Py_ssize_t end
    if at < size and data[at] == 0x2d:
        at += 1
    if has_word(data, at, size, b"Infinity", 8):
        return at + 8 == size
    if has_word(data, at, size, b"NaN", 3):
        return digits_end(data, at + 3, size) == size
    if has_word(data, at, size, b"sNaN", 4):
        return digits_end(data, at + 4, size) == size
    end = digits_end(data, at, size)
    if end == at:
        return False
    at = end
    if at < size and data[at] == 0x2e:
        end = digits_end(data, at + 1, size)
        if end == at + 1:
            return False
        at = end
    if at == size:
        return True
    # In small letters where a program's decimal context says so.
    if data[at] != 0x45 and data[at] != 0x65:
        return False
    at += 1
    if at < size and (data[at] == 0x2b or data[at] == 0x2d):
        at += 1
    end = digits_end(data, at, size)
    return end == size and 0 < end - at <= EXPONENT_DIGITS_MAX


cdef object parse_decimal(const unsigned char* data, Py_ssize_t size):
    if not is_decimal(data, size):
        raise ValueError("the text of a Decimal is none")
    cdef PyObject* made = PyObject_CallOneArg(
        DECIMAL, PyUnicode_DecodeASCII(<const char*>data, size, NULL)
    )
    if made is NULL:
        error = take_failure()
        if PyErr_GivenExceptionMatches(error, ArithmeticError):
            raise ValueError("a Decimal's exponent is too large")
        raise error
    found = owned(made)
    # Of an exponent that is too large it makes NaN, where the program's context lets it.
    if size >= EXPONENT_DIGITS_MAX and not has_nan(data) and found.is_nan():
        raise ValueError("a Decimal's exponent is too large")
    return found


cdef inline bint has_nan(const unsigned char* data) noexcept:
    cdef Py_ssize_t at = 1 if data[0] == 0x2d else 0
    return data[at] == 0x4e or data[at] == 0x73


cdef object parse_complex(const unsigned char* data, Py_ssize_t size):
    check_body(size, COMPLEX_BYTES, "complex")
    return PyComplex_FromDoubles(get_double(data), get_double(data + 8))


cdef inline double get_double(const unsigned char* p) noexcept:
    cdef uint64_t bits = load_64(p)
    cdef double number
    memcpy(&number, &bits, 8)
    return number


cdef object parse_uuid(const unsigned char* data, Py_ssize_t size):
    check_body(size, UUID_BYTES, "UUID")
    found = RABBLE_BARE(UUID)
    rabble_fill(found, UUID_INT, "int", rabble_new_large(data, UUID_BYTES, False))
    rabble_fill(found, UUID_SAFE, "is_safe", SAFE_UNKNOWN)
    return found


cdef PyObject* new_time(const unsigned char* data, object zone) noexcept:
    return rabble_new_time(data, zone)


cdef PyObject* new_datetime(const unsigned char* data, object zone) noexcept:
    return rabble_new_datetime(data, zone)


cdef object make_timezone(object offset, object name):
    cdef int64_t us, most = <int64_t>SECONDS_PER_DAY * SECOND_US
    cdef int days
    if type(offset) is not int or not -most < offset < most:
        raise ValueError("the offset of a timezone is no number of less than a day")
    if name is None and offset == 0:
        raise ValueError("the timezone utc is written without an offset")
    if name is not None and type(name) is not str:
        raise ValueError("the name of a timezone is no string")
    us = offset
    # Normalized: what is left of a day is not negative.
    days = 0 if us >= 0 else -1
    us -= days * most
    delta = rabble_new_timedelta(days, <int>(us // SECOND_US), <int>(us % SECOND_US))
    return TIMEZONE(delta) if name is None else TIMEZONE(delta, name)


cdef object check_number(object value, str what):
    if type(value) is not int:
        raise ValueError(f"a number of a {what} is no int")
    if int_size(value) > NUMBER_BYTES_MAX:
        raise ValueError(f"a number of a {what} takes more than {NUMBER_BYTES_MAX} bytes")


cdef object make_fraction(object numerator, object denominator):
    check_number(numerator, "Fraction")
    check_number(denominator, "Fraction")
    if denominator <= 0 or denominator != 1 and gcd(numerator, denominator) != 1:
        raise ValueError("a Fraction is not in lowest terms, or its denominator is not above 0")
    found = RABBLE_BARE(FRACTION)
    rabble_fill(found, NUMERATOR, "_numerator", numerator)
    rabble_fill(found, DENOMINATOR, "_denominator", denominator)
    return found


cdef object make_range(object start, object stop, object step):
    # To work out its length takes a division.
    for number in (start, stop, step):
        check_number(number, "range")
    return RANGE(start, stop, step)


ctypedef PyObject* (*quiet_two)(PyObject* one, PyObject* two) noexcept
ctypedef PyObject* (*quiet_three)(PyObject* one, PyObject* two, PyObject* three) noexcept


cdef PyObject* new_timezone(object offset, object name) noexcept:
    return (<quiet_two><void*>make_timezone)(<PyObject*>offset, <PyObject*>name)


cdef PyObject* new_fraction(object numerator, object denominator) noexcept:
    return (<quiet_two><void*>make_fraction)(<PyObject*>numerator, <PyObject*>denominator)


cdef PyObject* new_range(object start, object stop, object step) noexcept:
    return (<quiet_three><void*>make_range)(<PyObject*>start, <PyObject*>stop, <PyObject*>step)


cdef object utc():
    return rabble_utc()


cdef frozenset zone_names():
    return frozenset(zoneinfo.available_timezones())


cdef object new_zone(str key):
    return ZONEINFO(key)
