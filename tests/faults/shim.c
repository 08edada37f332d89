/* Breaks the n-th call by which a process changes files below a folder. For tests/it/faults.rs, loaded with LD_PRELOAD.
 *
 * FAULT_BELOW  the folder (absolute); calls on other files are not counted
 * FAULT_AT     which call is broken, counted from 1; 0: none
 * FAULT_KIND   eio, enospc (fails once); full (this call and every later one that needs room fails: the disk stays full);
 *              short (a write writes half of its bytes and says so); kill (the process is killed before the call);
 *              torn (a write writes half of its bytes, then the process is killed)
 * FAULT_COUNT  a file into which the number of calls is written when the process ends by itself
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long calls;

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

static int below(const char *path) {
    const char *folder = getenv("FAULT_BELOW");
    size_t length = folder ? strlen(folder) : 0;
    return length && path && strncmp(path, folder, length) == 0;
}

static int fd_below(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

static int at_below(int dir, const char *path) {
    return path && (path[0] == '/' ? below(path) : dir != AT_FDCWD && fd_below(dir));
}

enum fault { NONE, FAIL, SHORT, TORN };

/* What is to happen to this call. `room`: it needs room on the disk. */
static enum fault fault(int room) {
    const char *at = getenv("FAULT_AT"), *kind = getenv("FAULT_KIND");
    long call = atomic_fetch_add(&calls, 1) + 1, wanted = at ? atol(at) : 0;
    if (!kind || !wanted || call < wanted) return NONE;
    if (strcmp(kind, "full") == 0) {
        errno = ENOSPC;
        return room ? FAIL : NONE;
    }
    if (call > wanted) return NONE;
    if (strcmp(kind, "kill") == 0) raise(SIGKILL);
    if (strcmp(kind, "short") == 0) return SHORT;
    if (strcmp(kind, "torn") == 0) return TORN;
    errno = strcmp(kind, "eio") == 0 ? EIO : ENOSPC;
    return FAIL;
}

__attribute__((destructor)) static void tell(void) {
    const char *path = getenv("FAULT_COUNT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    fprintf(file, "%ld\n", atomic_load(&calls));
    fclose(file);
}

#define FAIL_OR_DIE(room)                     \
    switch (fault(room)) {                    \
    case FAIL: return -1;                     \
    case TORN: raise(SIGKILL); break;         \
    default: break;                           \
    }

ssize_t write(int fd, const void *bytes, size_t count) {
    ssize_t (*real)(int, const void *, size_t) = next("write");
    if (!fd_below(fd)) return real(fd, bytes, count);
    switch (fault(1)) {
    case FAIL: return -1;
    case SHORT: return real(fd, bytes, count > 1 ? count / 2 : count);
    case TORN: real(fd, bytes, count / 2); raise(SIGKILL); return -1;
    default: return real(fd, bytes, count);
    }
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    ssize_t (*real)(int, const struct iovec *, int) = next("writev");
    if (fd_below(fd)) { FAIL_OR_DIE(1) }
    return real(fd, parts, count);
}

#define OPEN(name)                                                        \
    int name(const char *path, int flags, ...) {                          \
        int (*real)(const char *, int, ...) = next(#name);                \
        va_list rest;                                                     \
        va_start(rest, flags);                                            \
        mode_t mode = va_arg(rest, mode_t);                               \
        va_end(rest);                                                     \
        if ((flags & (O_CREAT | O_TRUNC)) && below(path)) { FAIL_OR_DIE(1) } \
        return real(path, flags, mode);                                   \
    }
OPEN(open)
OPEN(open64)

#define ON_FD(name, room)                              \
    int name(int fd) {                                 \
        int (*real)(int) = next(#name);                \
        if (fd_below(fd)) { FAIL_OR_DIE(room) }        \
        return real(fd);                               \
    }
ON_FD(fsync, 1)
ON_FD(fdatasync, 1)

#define TRUNCATE(name, type)                           \
    int name(int fd, type length) {                    \
        int (*real)(int, type) = next(#name);          \
        if (fd_below(fd)) { FAIL_OR_DIE(0) }           \
        return real(fd, length);                       \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

#define ON_TWO_PATHS(name, room)                       \
    int name(const char *from, const char *to) {       \
        int (*real)(const char *, const char *) = next(#name); \
        if (below(to)) { FAIL_OR_DIE(room) }           \
        return real(from, to);                         \
    }
ON_TWO_PATHS(rename, 0)
ON_TWO_PATHS(link, 1)

#define ON_PATH(name)                                  \
    int name(const char *path) {                       \
        int (*real)(const char *) = next(#name);       \
        if (below(path)) { FAIL_OR_DIE(0) }            \
        return real(path);                             \
    }
ON_PATH(unlink)
ON_PATH(rmdir)

int mkdir(const char *path, mode_t mode) {
    int (*real)(const char *, mode_t) = next("mkdir");
    if (below(path)) { FAIL_OR_DIE(1) }
    return real(path, mode);
}

int unlinkat(int dir, const char *path, int flags) {
    int (*real)(int, const char *, int) = next("unlinkat");
    if (at_below(dir, path)) { FAIL_OR_DIE(0) }
    return real(dir, path, flags);
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    int (*real)(int, const char *, int, const char *, int) = next("linkat");
    if (at_below(to_dir, to)) { FAIL_OR_DIE(1) }
    return real(from_dir, from, to_dir, to, flags);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    int (*real)(int, const char *, int, const char *, unsigned) = next("renameat2");
    if (at_below(to_dir, to)) { FAIL_OR_DIE(0) }
    return real(from_dir, from, to_dir, to, flags);
}
