/* The load: the source of a stream and all of its receivers, in one process on one core.
 *
 *     load bulk|paced [OPTION VALUE]...
 *
 *     --source PORT    where the relay takes the source            --clients PORT  where it takes clients
 *     --serve PORT     1:1 instead: listen here for the relay      --count N       receivers (1)
 *     --size BYTES     of a message, or of a bulk write            --rate N        messages a second
 *     --seconds S      of sending (bulk: at most)                  --bytes N       bulk: to send
 *     --verify BYTES   bulk: sent first and checked to the byte    --patience S    without progress (3)
 *     --stall K        that many receivers stop reading ...        --calm S        ... after so long (0)
 *     --storm M        that many more connect at once, while the first stream runs, to a second one:
 *     --storm-source PORT  --storm-clients PORT
 *
 * On stdout: "serving" (--serve only), then "ready" once every receiver has had something and is in
 * step; a line on stdin starts the timed part; then one JSON object, and the links stay as they are
 * until stdin ends.  If some never get anything, the JSON object comes without "ready".
 *
 * In the timed part of bulk, the first line of each SPAN is looked at and the rest is counted
 * and thrown away unread (MSG_TRUNC); whatever loses, doubles or swaps bytes shifts the next line that
 * is looked at.  In `--verify`, and of messages always, every byte is compared.
 */
#define _GNU_SOURCE
#include <inttypes.h>

#include "stream.h"

enum { BATCH = 256, CONNECTS = 32 }; /* events, and the storm's connects, of one turn */

enum { /* nanoseconds */
    LONGEST_WAIT = 20000000,
    SURPLUS_WAIT = 50000000,
    JOIN_PAUSE = 20000000, /* between two that join; less where so many join that it would take ... */
    JOINING = 1500000000,  /* ... longer than this */
    PROBE_PAUSE = 20000000,
};

static uint64_t longest_wait = LONGEST_WAIT; /* of a turn */

/* -- the loop -------------------------------------------------------------------------------- */

static uint64_t until_due(void)
{
    uint64_t now = now_ns(), wait = longest_wait;

    for (struct stream *stream = &main_stream;; stream = &storm) {
        if (stream->bulk && stream->writable && stream->position < stream->limit)
            return 0;
        if (stream->left && stream->writable && stream->due < now + wait)
            wait = stream->due > now ? stream->due - now : 0;
        if (stream == &storm)
            return wait;
    }
}

static int turn(void)
{
    struct epoll_event events[BATCH];
    uint64_t wait = until_due();
    struct timespec timeout = {.tv_nsec = (long)wait};
    int count = epoll_pwait2(poller, events, BATCH, &timeout, NULL);

    for (int i = 0; i < count; i++) {
        struct link *link = events[i].data.ptr;

        if (link == &link->stream->source) {
            link->stream->writable = true;
        } else if (!link->closed && !link->stalled) {
            link->stream->up += !link->up;
            link->up = true;
            receive(link);
        }
        pace(&main_stream); /* a due message does not wait for the receivers' turn to end */
    }
    pump(&main_stream);
    pace(&main_stream);
    pace(&storm);
    return count;
}

/* Whatever comes now is more than was sent: wait until nothing does, though not for ever. */
static void take_surplus(void)
{
    uint64_t quiet = now_ns(), end = quiet + patience;

    while (now_ns() - quiet < SURPLUS_WAIT && now_ns() < end)
        if (turn())
            quiet = now_ns();
}

/* Turn until `done`; false when nothing has moved for so long that nothing will. */
static bool drive(struct stream *stream, bool (*done)(const struct stream *))
{
    uint64_t seen = progress, since = now_ns();

    while (!done(stream)) {
        turn();
        if (progress != seen || stream->left) {
            seen = progress;
            since = now_ns();
        } else if (now_ns() - since > patience) {
            return false;
        }
        if (stream->stop && now_ns() > stream->stop + patience && !stream->bulk)
            return false; /* a relay that cannot keep up is not waited for */
    }
    return true;
}

static bool all_served(const struct stream *stream)
{
    return stream->served + stream->ended >= stream->count;
}

static bool all_in_step(const struct stream *stream)
{
    for (size_t i = 0; i < stream->count; i++)
        if (!stream->links[i].closed && (stream->links[i].last != stream->sequence - 1 || stream->links[i].have))
            return false;
    return !stream->left;
}

static bool all_sent(const struct stream *stream)
{
    return !stream->left && !stream->out_have;
}

static bool all_delivered(const struct stream *stream)
{
    if (!stream->bulk && !all_sent(stream))
        return false;
    for (size_t i = 0; i < stream->count; i++) {
        const struct link *link = &stream->links[i];
        bool short_of = stream->bulk ? link->position < stream->limit : link->got < stream->expected;

        if (short_of && !link->closed && !link->stalled)
            return false;
    }
    return true;
}

/* -- the parts of a run ---------------------------------------------------------------------- */

static void send_messages(struct stream *stream, uint64_t count, uint64_t interval)
{
    stream->left = count;
    stream->interval = interval;
    stream->due = now_ns();
}

static void begin_part(struct stream *stream)
{
    memset(&stream->now, 0, sizeof stream->now);
    stream->now.began = now_ns();
    stream->stop = 0;
    stream->position = 0;
    for (size_t i = 0; i < stream->count; i++)
        stream->links[i].position = stream->links[i].got = stream->links[i].highest = 0;
}

static void end_part(struct stream *stream)
{
    struct result *now = &stream->now;

    now->ended = now_ns();
    stream->left = 0;
    take_surplus();
    if (stream->bulk) {
        now->sent = stream->position;
        for (size_t i = 0; i < stream->count; i++) {
            uint64_t got = stream->links[i].position;

            now->lost += got < now->sent ? now->sent - got : 0;
            now->duplicated += got > now->sent ? got - now->sent : 0;
        }
        return;
    }
    for (size_t i = 0; i < stream->count; i++) {
        struct link *link = &stream->links[i];

        if (!link->stalled)
            now->lost += link->got < now->sent ? now->sent - link->got : 0;
        free(link->seen);
        link->seen = NULL;
    }
}

/* Let everybody in, one by one: a crowd at the door is the storm's business (a listener with a short
 * backlog loses some of it for ever, where the kernel answers with SYN cookies).  Then messages are sent
 * until everybody has had one, and at last one more, which everybody must have: all are in step. */
static bool join(struct stream *stream, uint16_t port, size_t stalled)
{
    uint64_t since = now_ns(), next = since, pause = JOINING / stream->count;
    size_t through = 0;

    pause = pause < JOIN_PAUSE ? pause : JOIN_PAUSE; /* str2str opens its door every 10 ms */
    longest_wait = pause;
    while (!all_served(stream)) {
        if (listener >= 0 && !stream->connected) {
            accept_one(stream);
        } else if (stream->connected < stream->count && now_ns() >= next) {
            connect_one(stream, port, stream->connected < stalled);
            since = now_ns();
            next = since + pause;
        } else if (stream->connected == stream->count && !stream->left) {
            send_messages(stream, 1, 0);
            stream->due += PROBE_PAUSE + stream->count * 20000; /* a thousand links take time to be fed */
        }
        turn();
        if (stream->served + stream->ended != through) {
            through = stream->served + stream->ended;
            since = now_ns();
        } else if (now_ns() - since > patience) {
            return false;
        }
    }
    longest_wait = LONGEST_WAIT;
    send_messages(stream, 1, 0);
    return drive(stream, all_in_step) && stream->served == stream->count;
}

static void run_bulk(struct stream *stream, uint64_t bytes, double seconds, bool checked)
{
    begin_part(stream);
    stream->bulk = true;
    stream->checked = checked;
    stream->limit = bytes;
    stream->stop = seconds > 0 ? now_ns() + (uint64_t)(seconds * 1e9) : 0;
    drive(stream, all_delivered);
    end_part(stream);
}

static void begin_paced(struct stream *stream, double rate, double seconds)
{
    begin_part(stream);
    stream->first = stream->sequence;
    stream->expected = (uint64_t)(rate * seconds + 0.5);
    for (size_t i = 0; i < stream->count; i++)
        if (!stream->links[i].closed)
            stream->links[i].seen = calloc(stream->expected / 64 + 1, sizeof(uint64_t));
    send_messages(stream, stream->expected, (uint64_t)(1e9 / rate));
    stream->stop = now_ns() + (uint64_t)(seconds * 1e9);
}

static void stall(struct stream *stream, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        stream->links[i].stalled = true;
        epoll_ctl(poller, EPOLL_CTL_DEL, stream->links[i].fd, NULL);
    }
}

static bool storm_is_up(const struct stream *stream)
{
    return stream->up >= stream->count; /* or refused: that is an event, too */
}

/* Connect as fast as it goes, beside the running stream; then give the relay a second to accept what the
 * kernel has for it.  Returns how long it took until the kernel had them all, or would have no more. */
static double storm_in(uint16_t port)
{
    uint64_t began = now_ns(), since = began, up = 0;

    while (!storm_is_up(&storm) && now_ns() - since < 2 * patience) {
        for (int i = 0; i < CONNECTS && storm.connected < storm.count; i++)
            connect_one(&storm, port, false);
        turn();
        if (storm.up != up || storm.connected < storm.count) {
            up = storm.up;
            since = now_ns();
        }
    }
    for (uint64_t end = now_ns() + 1000000000; now_ns() < end;)
        turn();
    return (double)(since - began) / 1e9;
}

/* One message a second, until everybody in the storm has had one, or nobody more gets one. */
static double serve_storm(void)
{
    uint64_t began = now_ns(), since = began, seen = 0;

    for (send_messages(&storm, 1, 0); !all_served(&storm) && now_ns() - since < patience; turn()) {
        if (!storm.left)
            send_messages(&storm, 1, 0), storm.due += 1000000000;
        if (storm.served != seen) {
            seen = storm.served;
            since = now_ns();
        }
    }
    return (double)(since - began) / 1e9;
}

static void print_result(const char *name, const struct result *result)
{
    const struct { const char *name; uint64_t value; } counts[] = {
        {"sent", result->sent}, {"delivered", result->delivered}, {"bytes", result->bytes}, {"lost", result->lost},
        {"torn", result->torn}, {"duplicated", result->duplicated}, {"reordered", result->reordered},
        {"closed", result->closed},
    };
    const struct histogram *latency = &result->latency;

    printf("\"%s\": {\"seconds\": %.6f", name, (double)(result->ended - result->began) / 1e9);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        printf(", \"%s\": %" PRIu64, counts[i].name, counts[i].value);
    printf(", \"late_ms\": %.3f", (double)result->late / 1e6);
    if (latency->count)
        printf(", \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f",
               (double)quantile(latency, 0.5) / 1e3, (double)quantile(latency, 0.99) / 1e3,
               (double)quantile(latency, 0.999) / 1e3, (double)latency->max / 1e3);
    printf("}, ");
}

struct options {
    double source, clients, serve, count, size, rate, seconds, bytes, verify, patience, stall, calm;
    double storm, storm_source, storm_clients;
};

static struct options parse(int argc, char **argv)
{
    struct options options = {.count = 1, .size = 100, .patience = 3, .rate = 1, .seconds = 1};
    struct { const char *name; double *value; } table[] = {
        {"--source", &options.source}, {"--clients", &options.clients}, {"--serve", &options.serve},
        {"--count", &options.count}, {"--size", &options.size}, {"--rate", &options.rate},
        {"--seconds", &options.seconds}, {"--bytes", &options.bytes}, {"--verify", &options.verify},
        {"--patience", &options.patience}, {"--stall", &options.stall}, {"--calm", &options.calm},
        {"--storm", &options.storm}, {"--storm-source", &options.storm_source},
        {"--storm-clients", &options.storm_clients},
    };

    for (int i = 2; i < argc; i += 2) {
        size_t row = 0, rows = sizeof table / sizeof *table;

        while (row < rows && strcmp(table[row].name, argv[i]) != 0)
            row++;
        if (row == rows || i + 1 == argc) {
            fprintf(stderr, "load: what is %s?\n", argv[i]);
            exit(2);
        }
        *table[row].value = atof(argv[i + 1]);
    }
    return options;
}

static void allocate(struct stream *stream, size_t count, size_t size)
{
    stream->count = count;
    stream->size = size;
    stream->links = calloc(count, sizeof *stream->links);
    stream->out = malloc(size);
    if (!stream->links || !stream->out)
        die("malloc");
}

static void part(const char *name, double rate, double seconds)
{
    begin_paced(&main_stream, rate, seconds);
    drive(&main_stream, all_delivered);
    end_part(&main_stream);
    print_result(name, &main_stream.now);
}

/* A part ends with what the storm does in it: what came after would dilute the latency. */
static void cut_part(const char *name)
{
    main_stream.expected -= main_stream.left;
    main_stream.left = 0;
    drive(&main_stream, all_delivered);
    end_part(&main_stream);
    print_result(name, &main_stream.now);
}

static void run_storm(const struct options *options)
{
    double connecting, serving;

    begin_paced(&main_stream, options->rate, options->seconds);
    connecting = storm_in((uint16_t)options->storm_clients);
    cut_part("timed");
    begin_paced(&main_stream, options->rate, options->seconds);
    serving = serve_storm();
    cut_part("serving");
    printf("\"storm\": {\"count\": %zu, \"served\": %zu, \"connecting\": %.3f, \"serving\": %.3f}, ", storm.count,
           storm.served, connecting, serving);
}

int main(int argc, char **argv)
{
    struct options options = parse(argc, argv);
    struct stream *stream = &main_stream;
    bool bulk = argc > 1 && strcmp(argv[1], "bulk") == 0, joined;
    static struct result verified;
    char line[16];

    make_tables();
    poller = epoll_create1(0);
    patience = (uint64_t)(options.patience * 1e9);
    allocate(stream, (size_t)options.count, bulk ? LINE : (size_t)options.size);
    if (options.serve > 0)
        serve((uint16_t)options.serve);
    connect_source(stream, (uint16_t)options.source);
    if (options.storm > 0) {
        allocate(&storm, (size_t)options.storm, LINE);
        connect_source(&storm, (uint16_t)options.storm_source);
    }
    joined = join(stream, (uint16_t)options.clients, (size_t)options.stall);
    if (joined && bulk) {
        stream->size = (size_t)options.size;
        run_bulk(stream, (uint64_t)options.verify, 0, true);
        verified = stream->now;
        joined = !verified.torn && !verified.lost;
    }
    if (joined) {
        puts("ready");
        fflush(stdout);
        if (!fgets(line, sizeof line, stdin))
            return 0;
    }
    printf("{");
    if (verified.ended)
        print_result("verified", &verified);
    if (joined && bulk) {
        run_bulk(stream, (uint64_t)options.bytes, options.seconds, false);
        print_result("timed", &stream->now);
    } else if (joined && options.storm > 0) {
        run_storm(&options);
    } else if (joined) {
        if (options.calm > 0)
            part("calm", options.rate, options.calm);
        stall(stream, (size_t)options.stall);
        part("timed", options.rate, options.seconds);
    }
    printf("\"count\": %zu, \"served\": %zu, \"ended\": %zu}\n", stream->count, stream->served, stream->ended);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin))
        ;
    return 0;
}
