/* What is sent, how a receiver proves that it came unharmed, and how long it took.
 *
 * Two kinds of stream, both text in lines, so that every framing of a relay can take them:
 *
 *  - bulk: lines of 64 random characters from a table.  The byte at position p is known, so any byte
 *    can be checked on its own.  The table's length is 64 times a prime: a relay that loses, doubles
 *    or swaps buffers of any usual size moves what follows to where other bytes belong.
 *  - messages of one size: "SEQUENCE TIME filler\n", both in hex, the time CLOCK_MONOTONIC in ns; the
 *    filler depends on the sequence number.  A torn message does not pass for another.
 */
#ifndef CHECK_H
#define CHECK_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    LINE = 64,
    PERIOD = LINE * 16411,  /* of the bulk table */
    SPAN = 256 * 1024,      /* how far one look into a table may reach */
    HEADER = 26,            /* "00000000 0000000000000000 " */
    SUB_BITS = 6,           /* a histogram cell is 1/64 of a power of two wide */
    CELLS = (64 - SUB_BITS) << SUB_BITS,
};

static char bulk_table[PERIOD + SPAN], filler_table[2 * SPAN];

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void make_tables(void)
{
    uint64_t state = 88172645463325252u; /* xorshift64, always the same */

    for (size_t i = 0; i < sizeof bulk_table; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        bulk_table[i] = (char)('0' + state % 64); /* '0' to 'o' */
        if (i % LINE == LINE - 1)
            bulk_table[i] = '\n';
        if (i >= PERIOD)
            bulk_table[i] = bulk_table[i - PERIOD];
    }
    for (size_t i = 0; i < sizeof filler_table; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        filler_table[i] = (char)('0' + state % 64);
    }
}

static const char *bulk_at(uint64_t position)
{
    return bulk_table + position % PERIOD;
}

static const char *filler_of(uint32_t sequence)
{
    return filler_table + sequence * 61u % SPAN;
}

static void put_hex(char *text, int digits, uint64_t value)
{
    while (digits--) {
        text[digits] = "0123456789abcdef"[value & 15];
        value >>= 4;
    }
}

static bool get_hex(const char *text, int digits, uint64_t *value)
{
    uint64_t seen = 0;

    for (int i = 0; i < digits; i++) {
        char c = text[i];

        if (c >= '0' && c <= '9')
            seen = seen << 4 | (uint64_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            seen = seen << 4 | (uint64_t)(c - 'a' + 10);
        else
            return false;
    }
    *value = seen;
    return true;
}

static void make_message(char *text, size_t size, uint32_t sequence, uint64_t time)
{
    put_hex(text, 8, sequence);
    put_hex(text + 9, 16, time);
    text[8] = text[25] = ' ';
    memcpy(text + HEADER, filler_of(sequence), size - HEADER - 1);
    text[size - 1] = '\n';
}

static bool read_message(const char *text, size_t size, uint32_t *sequence, uint64_t *time)
{
    uint64_t number;

    if (!get_hex(text, 8, &number) || !get_hex(text + 9, 16, time) || text[8] != ' ' || text[25] != ' ')
        return false;
    *sequence = (uint32_t)number;
    return text[size - 1] == '\n' && memcmp(text + HEADER, filler_of(*sequence), size - HEADER - 1) == 0;
}

/* Log-linear: exact below 64 ns, within 1.6 % above. */
struct histogram {
    uint64_t count, max;
    uint32_t cells[CELLS];
};

static void record(struct histogram *histogram, uint64_t value)
{
    int shift = value >> SUB_BITS ? 63 - __builtin_clzll(value) - SUB_BITS : 0;
    uint64_t cell = (value >> shift) + ((uint64_t)shift << SUB_BITS);

    histogram->cells[cell < CELLS ? cell : CELLS - 1]++;
    histogram->count++;
    if (value > histogram->max)
        histogram->max = value;
}

static uint64_t quantile(const struct histogram *histogram, double part)
{
    uint64_t rank = (uint64_t)(part * (double)histogram->count), seen = 0;

    for (uint64_t cell = 0; cell < CELLS; cell++) {
        seen += histogram->cells[cell];
        if (seen > rank) {
            uint64_t shift = cell >> SUB_BITS ? (cell >> SUB_BITS) - 1 : 0;
            uint64_t low = (cell - (shift << SUB_BITS)) << shift;

            return low + (1ull << shift) / 2;
        }
    }
    return histogram->max;
}

#endif
