// Makes one file call of a process fail, or ends the process there: loaded with LD_PRELOAD, armed by `arm`.
//
// Only calls on paths below a prefix count. The counter is shared with the processes that are forked later.
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
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OFF, KILL, FAIL, FULL, SLOW };
enum { CREATES = 1, WRITES = 2, NAMES = 4, SYNCS = 8, REMOVES = 16 };

struct shared {
    int mode, error;
    long at, calls;
    pid_t process;
    char prefix[PATH_MAX];
};
static struct shared *shared;

// mode: one of the enum; at: which call, from 1 on; error: the errno of FAIL.
void arm(int mode, long at, int error, const char *prefix) {
    if (!shared) shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    shared->mode = OFF;
    shared->calls = 0, shared->at = at, shared->error = error, shared->process = getpid();
    snprintf(shared->prefix, sizeof shared->prefix, "%s", prefix);
    shared->mode = mode;
}

long calls(void) { return shared ? shared->calls : 0; }

// Whether this call fails, with errno set.
static int hit(int kind, const char *path) {
    if (!shared || !shared->prefix[0] || strncmp(path, shared->prefix, strlen(shared->prefix))) return 0;
    long number = __atomic_add_fetch(&shared->calls, 1, __ATOMIC_SEQ_CST);
    if (shared->mode == SLOW && (kind & (WRITES | SYNCS))) nanosleep(&(struct timespec){0, shared->at * 1000000L}, NULL);
    if (shared->mode == KILL && number == shared->at) {
        kill(shared->process, SIGKILL);
        kill(getpid(), SIGKILL);
    }
    if (shared->mode == FAIL && number == shared->at && !(kind & REMOVES)) {
        errno = shared->error;
        return 1;
    }
    // a disk that is full stays full
    if (shared->mode == FULL && number >= shared->at && (kind & (CREATES | WRITES))) {
        errno = ENOSPC;
        return 1;
    }
    return 0;
}

static int hit_descriptor(int kind, int descriptor) {
    if (!shared || !shared->prefix[0]) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    int saved = errno;
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (length < 0) return 0;
    path[length] = 0;
    return hit(kind, path);
}

static int hit_at(int kind, int folder, const char *name) {
    if (name[0] == '/' || folder == AT_FDCWD) return hit(kind, name);
    return hit_descriptor(kind, folder);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define MODE va_list list; va_start(list, flags); mode_t mode = va_arg(list, mode_t); va_end(list)
#define WRITABLE(flags) (((flags) & O_ACCMODE) != O_RDONLY || ((flags) & O_CREAT))
// a file that is there needs no space to be opened
#define OPENS(at, path, flags) (((flags) & O_CREAT) && faccessat(at, path, F_OK, 0) ? CREATES : NAMES)

int open(const char *path, int flags, ...) { MODE; REAL(open); if (WRITABLE(flags) && hit(OPENS(AT_FDCWD, path, flags), path)) return -1; return real(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE; REAL(open64); if (WRITABLE(flags) && hit(OPENS(AT_FDCWD, path, flags), path)) return -1; return real(path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE; REAL(openat); if (WRITABLE(flags) && hit_at(OPENS(at, path, flags), at, path)) return -1; return real(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE; REAL(openat64); if (WRITABLE(flags) && hit_at(OPENS(at, path, flags), at, path)) return -1; return real(at, path, flags, mode); }
ssize_t write(int file, const void *data, size_t size) { REAL(write); if (hit_descriptor(WRITES, file)) return -1; return real(file, data, size); }
ssize_t writev(int file, const struct iovec *parts, int count) { REAL(writev); if (hit_descriptor(WRITES, file)) return -1; return real(file, parts, count); }
ssize_t pwrite(int file, const void *data, size_t size, off_t at) { REAL(pwrite); if (hit_descriptor(WRITES, file)) return -1; return real(file, data, size, at); }
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) { REAL(pwrite64); if (hit_descriptor(WRITES, file)) return -1; return real(file, data, size, at); }
ssize_t pwritev(int file, const struct iovec *parts, int count, off_t at) { REAL(pwritev); if (hit_descriptor(WRITES, file)) return -1; return real(file, parts, count, at); }
ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags) { REAL(copy_file_range); if (hit_descriptor(WRITES, to)) return -1; return real(from, a, to, b, size, flags); }
ssize_t sendfile(int, int, off_t *, size_t);
ssize_t sendfile(int to, int from, off_t *at, size_t size) { REAL(sendfile); if (hit_descriptor(WRITES, to)) return -1; return real(to, from, at, size); }
ssize_t sendfile64(int, int, off64_t *, size_t);
ssize_t sendfile64(int to, int from, off64_t *at, size_t size) { REAL(sendfile64); if (hit_descriptor(WRITES, to)) return -1; return real(to, from, at, size); }
int ftruncate(int file, off_t size) { REAL(ftruncate); if (hit_descriptor(WRITES, file)) return -1; return real(file, size); }
int ftruncate64(int file, off64_t size) { REAL(ftruncate64); if (hit_descriptor(WRITES, file)) return -1; return real(file, size); }
int fsync(int file) { REAL(fsync); if (hit_descriptor(SYNCS, file)) return -1; return real(file); }
int fdatasync(int file) { REAL(fdatasync); if (hit_descriptor(SYNCS, file)) return -1; return real(file); }
// A clock that steps: the real time is off by the seconds in the file that INJECT_CLOCK names.
static double off(void) {
    static const char *name;
    if (!name && !(name = getenv("INJECT_CLOCK"))) name = "";
    if (!*name) return 0;
    int saved = errno;
    double seconds = 0;
    FILE *file = fopen(name, "r");
    if (file) {
        if (fscanf(file, "%lf", &seconds) != 1) seconds = 0;
        fclose(file);
    }
    errno = saved;
    return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += (time_t)off();
    return result;
}

time_t time(time_t *now) {
    struct timespec here;
    clock_gettime(CLOCK_REALTIME, &here);
    if (now) *now = here.tv_sec;
    return here.tv_sec;
}

int mkdir(const char *path, mode_t mode) { REAL(mkdir); if (hit(CREATES, path)) return -1; return real(path, mode); }
int rename(const char *a, const char *b) { REAL(rename); if (hit(NAMES, a)) return -1; return real(a, b); }
int renameat(int x, const char *a, int y, const char *b) { REAL(renameat); if (hit_at(NAMES, x, a)) return -1; return real(x, a, y, b); }
int renameat2(int x, const char *a, int y, const char *b, unsigned flags) { REAL(renameat2); if (hit_at(NAMES, x, a)) return -1; return real(x, a, y, b, flags); }
int unlink(const char *path) { REAL(unlink); if (hit(REMOVES, path)) return -1; return real(path); }
int unlinkat(int at, const char *path, int flags) { REAL(unlinkat); if (hit_at(REMOVES, at, path)) return -1; return real(at, path, flags); }
int rmdir(const char *path) { REAL(rmdir); if (hit(REMOVES, path)) return -1; return real(path); }
