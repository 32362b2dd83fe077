/* Kills the process before the n-th call by which SoftHSM changes a file of a token: on disk is then what was done
 * before, and nothing else. Loaded before the C library (LD_PRELOAD); it counts when it is told to. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static long passed, fatal;
static int counts;

/* Count from now on; kill before call n, or before none (0). */
void kill_before(long n)
{
	passed = 0;
	fatal = n;
	counts = 1;
}

/* How many calls there were. */
long calls_passed(void)
{
	return passed;
}

static void pass(const char *path)
{
	if (counts && strstr(path, "/tokens/") && !strstr(path, ".lock") && ++passed == fatal)
		kill(getpid(), SIGKILL);
}

static void pass_descriptor(int descriptor)
{
	char link[64], path[4096];
	ssize_t length;

	if (!counts || descriptor < 0)
		return;
	snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
	length = readlink(link, path, sizeof path - 1);
	if (length > 0 && (fcntl(descriptor, F_GETFL) & O_ACCMODE) != O_RDONLY) {
		path[length] = 0;
		pass(path);
	}
}

int open(const char *path, int flags, ...)
{
	va_list rest;
	mode_t mode;

	va_start(rest, flags);
	mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
	va_end(rest);
	if (flags & (O_CREAT | O_TRUNC))
		pass(path);
	return NEXT(open)(path, flags, mode);
}

FILE *fopen(const char *path, const char *mode)
{
	if (mode[0] == 'w')
		pass(path);
	return NEXT(fopen)(path, mode);
}

int ftruncate(int descriptor, off_t length)
{
	pass_descriptor(descriptor);
	return NEXT(ftruncate)(descriptor, length);
}

int fflush(FILE *file)
{
	if (file)
		pass_descriptor(fileno(file));
	return NEXT(fflush)(file);
}

int fclose(FILE *file)
{
	pass_descriptor(fileno(file));
	return NEXT(fclose)(file);
}

int remove(const char *path)
{
	pass(path);
	return NEXT(remove)(path);
}

int mkdir(const char *path, mode_t mode)
{
	pass(path);
	return NEXT(mkdir)(path, mode);
}
