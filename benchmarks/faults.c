/* Preloaded into a run, this counts the operations that change files below $FAULT_ROOT. At number $FAULT_AT it kills the
 * process (FAULT_MODE=kill), or from there on lets every one fail as on a full disk (FAULT_MODE=full). It writes the
 * count to $FAULT_COUNT when the process ends. Built by benchmarks/faults.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static volatile long operations;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Whether the operation on PATH is to fail; it may not return at all. */
static int fails(const char *path) {
  const char *root = getenv("FAULT_ROOT"), *mode = getenv("FAULT_MODE"), *at = getenv("FAULT_AT");
  if (!root || !path || strncmp(path, root, strlen(root))) return 0;
  long number = __sync_add_and_fetch(&operations, 1);
  if (!mode || !at || number < atol(at)) return 0;
  if (!strcmp(mode, "kill")) kill(getpid(), SIGKILL);
  errno = ENOSPC;
  return 1;
}

static int fails_fd(int fd) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n <= 0) return 0;
  path[n] = 0;
  return fails(path);
}

/* A path relative to the folder DIRECTORY, made absolute. */
static int fails_at(int directory, const char *path) {
  char link[64], whole[2 * PATH_MAX];
  if (directory == AT_FDCWD || path[0] == '/') return fails(path);
  snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
  ssize_t n = readlink(link, whole, PATH_MAX);
  if (n <= 0) return 0;
  snprintf(whole + n, sizeof whole - n, "/%s", path);
  return fails(whole);
}

ssize_t write(int fd, const void *data, size_t size) { return fails_fd(fd) ? -1 : REAL(write)(fd, data, size); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return fails_fd(fd) ? -1 : REAL(pwrite)(fd, data, size, at); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return fails_fd(fd) ? -1 : REAL(pwrite64)(fd, data, size, at); }
ssize_t writev(int fd, const struct iovec *parts, int count) { return fails_fd(fd) ? -1 : REAL(writev)(fd, parts, count); }
int ftruncate(int fd, off_t size) { return fails_fd(fd) ? -1 : REAL(ftruncate)(fd, size); }
int fsync(int fd) { return fails_fd(fd) ? -1 : REAL(fsync)(fd); }
int rename(const char *from, const char *to) { return fails(to) ? -1 : REAL(rename)(from, to); }
int renameat(int a, const char *from, int b, const char *to) { return fails_at(b, to) ? -1 : REAL(renameat)(a, from, b, to); }
int unlink(const char *path) { return fails(path) ? -1 : REAL(unlink)(path); }
int mkdir(const char *path, mode_t mode) { return fails(path) ? -1 : REAL(mkdir)(path, mode); }

#define OPEN(name, before, path, check)                                     \
  {                                                                         \
    mode_t mode = 0;                                                        \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                  \
      va_list rest;                                                         \
      va_start(rest, flags);                                                \
      mode = va_arg(rest, mode_t);                                          \
      va_end(rest);                                                         \
    }                                                                       \
    if ((flags & O_CREAT) && (check)) return -1;                            \
    return REAL(name) before;                                               \
  }
int open(const char *path, int flags, ...) OPEN(open, (path, flags, mode), path, fails(path))
int open64(const char *path, int flags, ...) OPEN(open64, (path, flags, mode), path, fails(path))
int openat(int dir, const char *path, int flags, ...) OPEN(openat, (dir, path, flags, mode), path, fails_at(dir, path))
int openat64(int dir, const char *path, int flags, ...) OPEN(openat64, (dir, path, flags, mode), path, fails_at(dir, path))

__attribute__((destructor)) static void tell(void) {
  const char *file = getenv("FAULT_COUNT");
  FILE *out = file ? fopen(file, "w") : NULL;
  if (out) {
    fprintf(out, "%ld\n", operations);
    fclose(out);
  }
}
