/*
 * Owned bytes against a model: the bytes that went in come out, in order,
 * whatever is asked in between; memory is held while there is content, and
 * given back when an empty buffer is told to.
 */
#include "fuzz.h"

#include "core/buffer.h"

struct model {
    struct tw_buffer b;
    uint64_t in, out; /* bytes written and consumed since the beginning */
};

static uint8_t pattern(uint64_t at)
{
    return (uint8_t)(at * 31 + (at >> 8) * 7);
}

static void fill(uint8_t *to, uint64_t at, size_t n)
{
    size_t i;

    for (i = 0; i < n; i++) {
        to[i] = pattern(at + i);
    }
}

static void check(const struct model *m)
{
    size_t len = tw_buffer_length(&m->b);

    HOLDS(len == m->in - m->out);
    HOLDS(m->b.start <= m->b.end && m->b.end <= m->b.room);
    HOLDS((m->b.data == NULL) == (m->b.room == 0));
    HOLDS(m->b.secret <= m->b.room);
    if (len > 0) {
        const uint8_t *head = tw_buffer_head(&m->b);

        HOLDS(head[0] == pattern(m->out));
        HOLDS(head[len - 1] == pattern(m->in - 1));
    }
}

static void consume(struct model *m, size_t n)
{
    const uint8_t *head = tw_buffer_head(&m->b);
    size_t i;

    for (i = 0; i < n; i++) {
        HOLDS(head[i] == pattern(m->out + i));
    }
    tw_buffer_consume(&m->b, n);
    m->out += n;
}

/* Mostly small; now and then what the pool's blocks are for. */
static size_t size_of(struct source *in)
{
    size_t n = source_byte(in);

    return n < 0xF0 ? n * 5 : n < 0xFE ? (n - 0xEF) * 4096
                                       : TW_BUFFER_BLOCK - 1 + (n & 1);
}

static void act(struct model *m, struct source *in)
{
    uint8_t bytes[1200];
    size_t n, room;
    uint8_t *to;

    switch (source_byte(in) % 8) {
    case 0:
    case 1:
        n = size_of(in) % (sizeof(bytes) + 1);
        fill(bytes, m->in, n);
        HOLDS(tw_buffer_append(&m->b, bytes, n));
        m->in += n;
        break;
    case 2:
    case 3:
        room = size_of(in);
        to = tw_buffer_reserve(&m->b, room);
        HOLDS(to != NULL);
        n = room == 0 ? 0 : source_size(in, room + 1);
        fill(to, m->in, n);
        tw_buffer_commit(&m->b, n);
        m->in += n;
        break;
    case 4:
    case 5:
        consume(m, source_size(in, tw_buffer_length(&m->b) + 1));
        break;
    case 6:
        n = source_size(in, tw_buffer_length(&m->b) + 1);
        if (m->b.data != NULL) {
            tw_buffer_stain(&m->b, tw_buffer_head(&m->b) + n);
            HOLDS(m->b.secret >= n);
        }
        if (source_byte(in) % 4 != 0) {
            break;
        }
        consume(m, tw_buffer_length(&m->b));
        tw_buffer_relax(&m->b);
        HOLDS(m->b.data == NULL && m->b.secret == 0);
        break;
    default:
        tw_buffer_relax(&m->b);
        if (source_byte(in) % 16 == 0) {
            tw_buffer_free(&m->b);
            HOLDS(m->b.data == NULL);
            m->out = m->in;
        }
        break;
    }
    check(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct source in = {data, len};
    struct model m = {.in = 0, .out = 0};
    int steps;

    tw_buffer_init(&m.b);
    for (steps = 0; steps < 64 && in.len > 0; steps++) {
        act(&m, &in);
    }
    consume(&m, tw_buffer_length(&m.b));
    tw_buffer_free(&m.b);
    return 0;
}
