/* TensorFlow's gRPC server always listens on all addresses of a machine (0.0.0.0, written into
 * grpc_server_lib.cc). Loaded before it (LD_PRELOAD), this holds such a socket to the one IPv4
 * address in TFSPEED_BIND; every other call goes through as it is. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

int bind(int fd, const struct sockaddr *address, socklen_t length) {
  int (*real)(int, const struct sockaddr *, socklen_t) =
      (int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "bind");
  const char *wanted = getenv("TFSPEED_BIND");
  struct in_addr host;
  if (!wanted || !address) return real(fd, address, length);
  if (inet_pton(AF_INET, wanted, &host) != 1) { /* never listen everywhere by mistake */
    errno = EADDRNOTAVAIL;
    return -1;
  }
  if (address->sa_family == AF_INET && length >= sizeof(struct sockaddr_in)) {
    struct sockaddr_in made;
    memcpy(&made, address, sizeof made);
    if (made.sin_addr.s_addr == htonl(INADDR_ANY)) made.sin_addr = host;
    return real(fd, (struct sockaddr *)&made, sizeof made);
  }
  if (address->sa_family == AF_INET6 && length >= sizeof(struct sockaddr_in6)) {
    struct sockaddr_in6 made;
    memcpy(&made, address, sizeof made);
    if (IN6_IS_ADDR_UNSPECIFIED(&made.sin6_addr)) { /* gRPC's first try: ::ffff:a.b.c.d */
      made.sin6_addr.s6_addr[10] = made.sin6_addr.s6_addr[11] = 0xff;
      memcpy(&made.sin6_addr.s6_addr[12], &host, sizeof host);
    }
    return real(fd, (struct sockaddr *)&made, sizeof made);
  }
  return real(fd, address, length);
}
