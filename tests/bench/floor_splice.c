/* The floor of every 1:1 relay: bytes go from one socket to another through a pipe and never enter
 * the process.
 *
 *     floor_splice LISTEN_PORT DESTINATION_PORT
 *
 * Waits for the source on the first port, connects to the second, both on 127.0.0.1, and ends with
 * the source.  One direction, blocking calls, no event loop: two system calls for each wake-up.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PIPE_SIZE = 1024 * 1024 };

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static struct sockaddr_in local(const char *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static int wait_for_source(const char *port)
{
    struct sockaddr_in address = local(port);
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1, fd;

    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 1) < 0)
        die(port);
    fd = accept(listener, NULL, NULL);
    if (fd < 0)
        die("accept");
    return fd;
}

static int connect_to(const char *port)
{
    struct sockaddr_in address = local(port);
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die(port);
    return fd;
}

int main(int argc, char **argv)
{
    int source, destination, ends[2];

    if (argc != 3) {
        fprintf(stderr, "usage: floor_splice LISTEN_PORT DESTINATION_PORT\n");
        return 2;
    }
    source = wait_for_source(argv[1]);
    destination = connect_to(argv[2]);
    if (pipe(ends) < 0 || fcntl(ends[1], F_SETPIPE_SZ, PIPE_SIZE) < 0)
        die("pipe");
    for (;;) {
        ssize_t taken = splice(source, NULL, ends[1], NULL, PIPE_SIZE, SPLICE_F_MOVE);

        if (taken <= 0)
            return taken < 0;
        while (taken > 0) {
            ssize_t given = splice(ends[0], NULL, destination, NULL, (size_t)taken, SPLICE_F_MOVE);

            if (given <= 0)
                die("splice");
            taken -= given;
        }
    }
}
