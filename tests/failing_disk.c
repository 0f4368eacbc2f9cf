/* A disk that fails, for tests: preloaded, it changes what reading a file returns.
 *
 * DISK_FILE: part of the path of the files that are concerned; DISK_FAULT: "error" (EIO beyond the first
 * DISK_FROM bytes), "short" (at most 777 bytes at a time, as any read may return). Both are looked up at each call, so
 * that a process can change them.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int concerned(int fd) {
    const char *wanted = getenv("DISK_FILE");
    char link[64], path[PATH_MAX];
    if (wanted == NULL || *wanted == 0 || getenv("DISK_FAULT") == NULL) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, wanted) != NULL;
}

/* How many of `count` bytes at `place` are read; -1 for an error. */
static ssize_t allowed(off_t place, size_t count) {
    const char *fault = getenv("DISK_FAULT"), *from = getenv("DISK_FROM");
    off_t start = from == NULL ? 0 : atoll(from);
    if (strcmp(fault, "short") == 0) return count < 777 ? count : 777;
    if (place + (off_t)count <= start) return count;
    if (strcmp(fault, "error") == 0) { errno = EIO; return -1; }
    return count;
}

ssize_t read(int fd, void *buffer, size_t count) {
    static ssize_t (*real)(int, void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "read");
    if (!concerned(fd)) return real(fd, buffer, count);
    ssize_t now = allowed(lseek(fd, 0, SEEK_CUR), count);
    return now <= 0 ? now : real(fd, buffer, now);
}

ssize_t pread(int fd, void *buffer, size_t count, off_t place) {
    static ssize_t (*real)(int, void *, size_t, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "pread");
    if (!concerned(fd)) return real(fd, buffer, count, place);
    ssize_t now = allowed(place, count);
    return now <= 0 ? now : real(fd, buffer, now, place);
}

ssize_t pread64(int fd, void *buffer, size_t count, off_t place) { return pread(fd, buffer, count, place); }

size_t fread(void *buffer, size_t size, size_t count, FILE *file) {
    static size_t (*real)(void *, size_t, size_t, FILE *);
    if (!real) real = dlsym(RTLD_NEXT, "fread");
    if (size == 0 || count == 0 || !concerned(fileno(file))) return real(buffer, size, count, file);
    if (strcmp(getenv("DISK_FAULT"), "short") == 0) return real(buffer, size, count, file);
    ssize_t now = allowed(ftello(file), size * count);
    return now <= 0 ? 0 : real(buffer, size, now / size, file);
}
