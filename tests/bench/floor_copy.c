/* The floor of every copying fan-out: what one source sends goes to N clients, with nothing else done.
 *
 *     floor_copy SOURCE_PORT CLIENT_PORT
 *
 * The source connects to the first port, clients to the second, both on 127.0.0.1.  No framing, no
 * counters, no log, no limits.  The one thing it cannot leave out is a client that is full for a
 * moment: the rest of a short write is kept, and the source is not read until every rest is gone.
 * So nothing is lost, and one stalled client stalls all, as with relayd's `overflow = block`.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ_SIZE = 256 * 1024, BATCH = 256, BACKLOG = 4096 };

struct client {
    int fd;
    size_t index;       /* in clients[] */
    char *rest;         /* what a short write left; NULL: nothing waits */
    size_t size, sent;  /* of the rest */
};

static int poller, source_listener, client_listener, source = -1;
static struct client **clients;
static size_t client_count, client_room, waiting;
static char buffer[READ_SIZE];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void watch(int operation, int fd, uint32_t events, void *owner)
{
    struct epoll_event event = {.events = events, .data.ptr = owner};

    if (epoll_ctl(poller, operation, fd, &event) < 0)
        die("epoll_ctl");
}

static int listen_on(const char *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, BACKLOG) < 0)
        die(port);
    return fd;
}

/* A source that has to wait is taken out of epoll altogether: level-triggered, it would spin. */
static void hold(void)
{
    if (waiting++ == 0 && source >= 0)
        watch(EPOLL_CTL_DEL, source, 0, NULL);
}

static void release(struct client *client)
{
    free(client->rest);
    client->rest = NULL;
    if (--waiting == 0 && source >= 0)
        watch(EPOLL_CTL_ADD, source, EPOLLIN, &source);
}

static void drop(struct client *client)
{
    if (client->rest)
        release(client);
    clients[client->index] = clients[--client_count];
    clients[client->index]->index = client->index;
    close(client->fd);
    free(client);
}

static void keep(struct client *client, const char *data, size_t size)
{
    client->rest = malloc(size);
    if (!client->rest)
        die("malloc");
    memcpy(client->rest, data, size);
    client->size = size;
    client->sent = 0;
    watch(EPOLL_CTL_MOD, client->fd, EPOLLIN | EPOLLOUT, client);
    hold();
}

static void flush(struct client *client)
{
    ssize_t n = send(client->fd, client->rest + client->sent, client->size - client->sent, MSG_NOSIGNAL);

    if (n > 0 && (client->sent += (size_t)n) == client->size) {
        release(client);
        watch(EPOLL_CTL_MOD, client->fd, EPOLLIN, client);
    }
}

static void relay(void)
{
    ssize_t n = recv(source, buffer, sizeof buffer, 0);

    if (n <= 0) {
        if (n < 0 && errno == EAGAIN)
            return;
        close(source);
        source = -1;
        return;
    }
    for (size_t i = 0; i < client_count; i++) {
        ssize_t taken = send(clients[i]->fd, buffer, (size_t)n, MSG_NOSIGNAL);

        if (taken < 0 && errno != EAGAIN)
            continue; /* broken: epoll is going to say so, and then it is dropped */
        if (taken < n)
            keep(clients[i], buffer + (taken < 0 ? 0 : taken), (size_t)(n - (taken < 0 ? 0 : taken)));
    }
}

static void accept_source(void)
{
    int fd = accept4(source_listener, NULL, NULL, SOCK_NONBLOCK);

    if (fd < 0)
        return;
    if (source >= 0)
        close(source);
    source = fd;
    if (!waiting)
        watch(EPOLL_CTL_ADD, source, EPOLLIN, &source);
}

static void accept_clients(void)
{
    int fd, on = 1;

    for (int i = 0; i < BATCH && (fd = accept4(client_listener, NULL, NULL, SOCK_NONBLOCK)) >= 0; i++) {
        struct client *client = calloc(1, sizeof *client);

        if (client_count == client_room) {
            client_room = client_room ? 2 * client_room : 64;
            clients = realloc(clients, client_room * sizeof *clients);
        }
        if (!client || !clients)
            die("malloc");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        client->fd = fd;
        client->index = client_count;
        clients[client_count++] = client;
        watch(EPOLL_CTL_ADD, fd, EPOLLIN, client);
    }
}

static void client_ready(struct client *client, uint32_t events)
{
    static char ignored[4096];

    /* Whatever a client sends is thrown away; one that ended is dropped. */
    if (events & (EPOLLHUP | EPOLLERR) || (events & EPOLLIN && recv(client->fd, ignored, sizeof ignored, 0) == 0))
        drop(client);
    else if (client->rest)
        flush(client);
}

int main(int argc, char **argv)
{
    struct epoll_event events[BATCH];

    if (argc != 3) {
        fprintf(stderr, "usage: floor_copy SOURCE_PORT CLIENT_PORT\n");
        return 2;
    }
    poller = epoll_create1(0);
    client_listener = listen_on(argv[2]);
    source_listener = listen_on(argv[1]);
    watch(EPOLL_CTL_ADD, source_listener, EPOLLIN, &source_listener);
    watch(EPOLL_CTL_ADD, client_listener, EPOLLIN, &client_listener);
    for (;;) {
        int count = epoll_wait(poller, events, BATCH, -1);

        for (int i = 0; i < count; i++) {
            void *owner = events[i].data.ptr;

            if (owner == &source_listener)
                accept_source();
            else if (owner == &client_listener)
                accept_clients();
            else if (owner != &source)
                client_ready(owner, events[i].events);
            else if (source >= 0 && !waiting)
                relay();
        }
    }
}
