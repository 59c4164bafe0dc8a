/* A stream: its source and its receivers, and what came of it.  See load.c for what it is used for. */
#ifndef STREAM_H
#define STREAM_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"

enum { BACKLOG = 16, PER_ADDRESS = 5000, STALLED_BUFFER = 64 * 1024 };

struct link {
    struct stream *stream;
    int fd;
    bool up, served, closed, stalled; /* its connect has come to an end; has had something; has ended; is not read */
    bool torn;                        /* bulk: what came was not what was sent */
    uint32_t last, highest;           /* messages: the latest, and the highest of this part */
    uint64_t position;                /* bulk: bytes of this part */
    uint64_t *seen, got;              /* messages: a bit for each of this part, and how many are set */
    char *partial;                    /* messages: the beginning of one */
    size_t have;
};

struct result {
    uint64_t sent, delivered, bytes, lost, torn, duplicated, reordered, closed, late, began, ended;
    struct histogram latency;
};

struct stream {
    struct link source, *links;
    size_t count, connected, up, served, ended; /* links, and how far they are */
    bool bulk, checked, writable;
    size_t size;
    uint64_t interval, due, left;     /* messages: ns between two, when the next, how many more */
    uint32_t sequence, first;         /* of the next message, of this part's first */
    uint64_t expected;                /* messages of this part */
    uint64_t position, limit, stop;   /* bulk: bytes sent, to be sent, and the time to end at */
    char *out;
    size_t out_have;                  /* unsent bytes at the end of `out` */
    struct result now;
};

static struct stream main_stream = {.count = 1, .size = 100}, storm;
static int poller, listener = -1;
static uint64_t patience, progress; /* how long (ns) it may be at a stand; a count that moves unless it is */
static char scratch[SPAN];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* -- links ----------------------------------------------------------------------------------- */

static struct sockaddr_in local(uint32_t host, uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};

    address.sin_addr.s_addr = htonl(host);
    return address;
}

static void watch(struct link *link, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = link};

    if (epoll_ctl(poller, EPOLL_CTL_ADD, link->fd, &event) < 0)
        die("epoll_ctl");
}

static void end_link(struct link *link)
{
    close(link->fd);
    link->closed = true;
    link->stream->ended++;
    if (!link->stalled)
        link->stream->now.closed++;
}

static void connect_source(struct stream *stream, uint16_t port)
{
    struct sockaddr_in address = local(INADDR_LOOPBACK, port);
    uint64_t deadline = now_ns() + patience;
    int fd, on = 1;

    for (;;) {
        fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
            break;
        if (now_ns() > deadline)
            die("the source's connect");
        close(fd);
        usleep(5000);
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    stream->source.fd = fd;
    stream->source.stream = stream;
    stream->writable = true;
    watch(&stream->source, EPOLLOUT | EPOLLET); /* what a relay sends back is none of ours */
}

/* A client that is to stall has a small buffer, or the kernel would hide megabytes of the lag. */
static void connect_one(struct stream *stream, uint16_t port, bool stalled)
{
    struct link *link = &stream->links[stream->connected];
    struct sockaddr_in to = local(INADDR_LOOPBACK, port);
    /* Ports are found at connect(), so one local address serves as many as there are ports. */
    struct sockaddr_in from = local(INADDR_LOOPBACK + 256 + (uint32_t)(stream->connected / PER_ADDRESS), 0);
    int on = 1, small = STALLED_BUFFER;

    link->stream = stream;
    link->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (link->fd < 0)
        die("socket");
    setsockopt(link->fd, SOL_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (stalled)
        setsockopt(link->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    if (bind(link->fd, (struct sockaddr *)&from, sizeof from) < 0)
        die("bind");
    if (connect(link->fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS)
        die("connect");
    /* Of the storm one wants to know when the connections stand; in bulk, edges would miss what is left. */
    watch(link, stream == &storm ? EPOLLIN | EPOLLOUT | EPOLLET : EPOLLIN);
    stream->connected++;
}

static void serve(uint16_t port)
{
    struct sockaddr_in address = local(INADDR_LOOPBACK, port);
    int on = 1;

    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, BACKLOG) < 0)
        die("serve");
    puts("serving");
    fflush(stdout);
}

static void accept_one(struct stream *stream)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);

    if (fd < 0)
        return;
    stream->links[0].stream = stream;
    stream->links[0].fd = fd;
    stream->connected = 1;
    watch(&stream->links[0], EPOLLIN);
}

/* -- the source ------------------------------------------------------------------------------ */

static bool flush_out(struct stream *stream)
{
    while (stream->out_have) {
        ssize_t n = send(stream->source.fd, stream->out + stream->size - stream->out_have, stream->out_have,
                         MSG_DONTWAIT | MSG_NOSIGNAL);

        if (n < 0) {
            stream->writable = false;
            return false;
        }
        stream->out_have -= (size_t)n;
    }
    return true;
}

/* Send what is due.  A message that the relay made wait carries the time at which it was due, so that
 * a source held up shows in the latency and does not hide it; any other the time at which it is sent. */
static void pace(struct stream *stream)
{
    uint64_t now;

    if (stream->bulk || !stream->left || !stream->writable || stream->due > (now = now_ns()))
        return;
    for (bool blocked = stream->out_have > 0; flush_out(stream) && stream->left && stream->due <= now; stream->left--) {
        if (now - stream->due > stream->now.late)
            stream->now.late = now - stream->due;
        make_message(stream->out, stream->size, stream->sequence++, blocked ? stream->due : now_ns());
        stream->out_have = stream->size;
        stream->due += stream->interval;
        stream->now.sent++;
    }
}

static void pump(struct stream *stream)
{
    uint64_t left = stream->limit - stream->position;
    ssize_t n;

    if (!stream->bulk || !stream->writable || !left)
        return;
    if (stream->stop && now_ns() > stream->stop) {
        /* At the end of a line: a relay that knows lines would wait for the rest of one. */
        stream->limit = (stream->position + LINE - 1) / LINE * LINE;
        left = stream->limit - stream->position;
        stream->stop = 0;
    }
    n = send(stream->source.fd, bulk_at(stream->position), left < stream->size ? left : stream->size,
             MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0)
        stream->writable = false;
    else
        stream->position += (uint64_t)n;
}

/* -- the receivers --------------------------------------------------------------------------- */

static void count_message(struct link *link, uint32_t sequence, uint64_t time, uint64_t now)
{
    struct stream *stream = link->stream;
    uint32_t number = sequence - stream->first;

    if (!link->served) {
        link->served = true;
        stream->served++;
        progress++;
    }
    link->last = sequence;
    if (!link->seen)
        return; /* still joining */
    if ((int32_t)number < 0)
        return; /* of a part before, where it has counted as lost */
    if (number >= stream->expected || link->seen[number / 64] >> number % 64 & 1) {
        stream->now.duplicated++;
        return;
    }
    link->seen[number / 64] |= 1ull << number % 64;
    link->got++;
    if (number + 1 < link->highest)
        stream->now.reordered++;
    else
        link->highest = number + 1;
    stream->now.delivered++;
    progress++;
    record(&stream->now.latency, now > time ? now - time : 0);
}

static void take_messages(struct link *link, const char *data, size_t size)
{
    struct stream *stream = link->stream;
    size_t whole = stream->size;
    uint64_t now = now_ns(), time;
    uint32_t sequence;

    while (size) {
        const char *message = data;
        size_t taken = whole;

        if (link->have || size < whole) {
            if (!link->partial && !(link->partial = malloc(whole)))
                die("malloc");
            taken = whole - link->have < size ? whole - link->have : size;
            memcpy(link->partial + link->have, data, taken);
            message = link->partial;
            link->have += taken;
            if (link->have < whole)
                return;
            link->have = 0;
        }
        data += taken;
        size -= taken;
        if (read_message(message, whole, &sequence, &time)) {
            count_message(link, sequence, time, now);
        } else {
            /* Torn.  What follows the next line's end is the beginning of a whole one again. */
            const char *end = memchr(message, '\n', whole);

            stream->now.torn++;
            if (!link->partial && !(link->partial = malloc(whole)))
                die("malloc");
            link->have = end ? (size_t)(message + whole - end - 1) : 0;
            memmove(link->partial, message + whole - link->have, link->have);
        }
    }
}

static ssize_t take_bulk(struct link *link)
{
    struct stream *stream = link->stream;
    size_t into = link->position % SPAN;
    bool look = stream->checked || into < LINE;
    ssize_t n;

    if (!look) {
        n = recv(link->fd, NULL, SPAN - into, MSG_TRUNC | MSG_DONTWAIT);
    } else {
        n = recv(link->fd, scratch, stream->checked ? SPAN : LINE - into, MSG_DONTWAIT);
        if (n > 0 && memcmp(scratch, bulk_at(link->position), (size_t)n) != 0 && !link->torn) {
            link->torn = true;
            stream->now.torn++;
        }
    }
    if (n > 0) {
        link->position += (uint64_t)n;
        stream->now.bytes += (uint64_t)n;
        progress++;
    }
    return n;
}

static void receive(struct link *link)
{
    ssize_t n;

    if (link->stream->bulk) {
        n = take_bulk(link);
        if (n == LINE)
            n = take_bulk(link); /* that was a look; now what it stands for */
    } else {
        n = recv(link->fd, scratch, sizeof scratch, MSG_DONTWAIT);
        if (n > 0) {
            link->stream->now.bytes += (uint64_t)n;
            take_messages(link, scratch, (size_t)n);
        }
    }
    if (n == 0 || (n < 0 && errno != EAGAIN))
        end_link(link);
}

#endif
