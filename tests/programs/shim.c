/* A PKCS#11 module for tests that forwards every call to another module, and does on the way what a file says.
 *
 * The file is mapped by every process that loads the module, so that what runs already can be told: its path is the
 * module's own with ".control" behind it, its form is `struct control`, and `tests/shim.py` writes and reads it.
 * Every function is forwarded as one with eight words, which is the most that a function of PKCS#11 takes; the calling
 * conventions of Linux let a function be called with more arguments than it has.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define CKR_OK 0x0UL
#define CKR_GENERAL_ERROR 0x5UL
#define CKR_USER_NOT_LOGGED_IN 0x101UL

/* CK_FUNCTION_LIST (PKCS#11 v2.40 §5), in its order. */
#define FUNCTIONS(F) \
    F(C_Initialize) F(C_Finalize) F(C_GetInfo) F(C_GetFunctionList) F(C_GetSlotList) F(C_GetSlotInfo) \
    F(C_GetTokenInfo) F(C_GetMechanismList) F(C_GetMechanismInfo) F(C_InitToken) F(C_InitPIN) F(C_SetPIN) \
    F(C_OpenSession) F(C_CloseSession) F(C_CloseAllSessions) F(C_GetSessionInfo) F(C_GetOperationState) \
    F(C_SetOperationState) F(C_Login) F(C_Logout) F(C_CreateObject) F(C_CopyObject) F(C_DestroyObject) \
    F(C_GetObjectSize) F(C_GetAttributeValue) F(C_SetAttributeValue) F(C_FindObjectsInit) F(C_FindObjects) \
    F(C_FindObjectsFinal) F(C_EncryptInit) F(C_Encrypt) F(C_EncryptUpdate) F(C_EncryptFinal) F(C_DecryptInit) \
    F(C_Decrypt) F(C_DecryptUpdate) F(C_DecryptFinal) F(C_DigestInit) F(C_Digest) F(C_DigestUpdate) \
    F(C_DigestKey) F(C_DigestFinal) F(C_SignInit) F(C_Sign) F(C_SignUpdate) F(C_SignFinal) F(C_SignRecoverInit) \
    F(C_SignRecover) F(C_VerifyInit) F(C_Verify) F(C_VerifyUpdate) F(C_VerifyFinal) F(C_VerifyRecoverInit) \
    F(C_VerifyRecover) F(C_DigestEncryptUpdate) F(C_DecryptDigestUpdate) F(C_SignEncryptUpdate) \
    F(C_DecryptVerifyUpdate) F(C_GenerateKey) F(C_GenerateKeyPair) F(C_WrapKey) F(C_UnwrapKey) F(C_DeriveKey) \
    F(C_SeedRandom) F(C_GenerateRandom) F(C_GetFunctionStatus) F(C_CancelFunction) F(C_WaitForSlotEvent)

#define NUMBERED(name) N_##name,
enum number { FUNCTIONS(NUMBERED) COUNT };

typedef unsigned long word;
typedef word function(word, word, word, word, word, word, word, word);

struct list {
    word version;
    function *function[COUNT];
};

#define DECLARED(name) function name;
#define LISTED(name) name,
FUNCTIONS(DECLARED)
static struct list own = {0, {FUNCTIONS(LISTED)}};

/* What a function is to do; `after` calls that pass first, then `times` that return `code`. */
struct orders {
    _Atomic word calls, code, after, times, held, waiting;
};
#define ALWAYS (~0UL)

struct control {
    char module[512];
    char serial[16];       /* shown instead of the token's own unless it is empty */
    _Atomic word delay_us; /* before every call, as over a network */
    _Atomic word gone;     /* what every call on the token returns; 0 while it is there */
    _Atomic word removals; /* how often it was taken away, and all sessions with it */
    _Atomic word logouts;  /* how often it forgot who logged in */
    _Atomic word empty;    /* searches find nothing */
    struct orders orders[COUNT];
};

static struct control *control;
static struct list *module;
static _Atomic word removals_seen, logouts_seen, logged_out;

static void load(void)
{
    char path[1024];
    Dl_info self;
    struct control *mapped;
    word (*list)(struct list **);
    void *library;
    int file;

    if (!dladdr(&own, &self) || snprintf(path, sizeof path, "%s.control", self.dli_fname) >= (int)sizeof path)
        return;
    if ((file = open(path, O_RDWR | O_CLOEXEC)) < 0)
        return;
    mapped = mmap(NULL, sizeof *mapped, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED || !(library = dlopen(mapped->module, RTLD_NOW | RTLD_LOCAL)))
        return;
    *(void **)&list = dlsym(library, "C_GetFunctionList");
    if (!list || list(&module) != CKR_OK)
        return;
    own.version = module->version;
    control = mapped;
}

static int taken(_Atomic word *left)
{
    word now = atomic_load(left);
    while (now != 0 && now != ALWAYS)
        if (atomic_compare_exchange_weak(left, &now, now - 1))
            return 1;
    return now == ALWAYS;
}

static void pause_us(word us)
{
    struct timespec time = {us / 1000000, us % 1000000 * 1000};
    nanosleep(&time, NULL);
}

static void wait_as_told(struct orders *orders)
{
    if (control->delay_us)
        pause_us(control->delay_us);
    if (!orders->held)
        return;
    orders->waiting++;
    while (orders->held)
        pause_us(500);
    orders->waiting--;
}

static int takes_a_session(enum number n)
{
    return n >= N_C_CloseSession && n != N_C_CloseAllSessions && n != N_C_WaitForSlotEvent;
}

static int uses_private_objects(enum number n)
{
    return (n >= N_C_CreateObject && n <= N_C_GetObjectSize) || n == N_C_SetAttributeValue
        || (n >= N_C_EncryptInit && n <= N_C_DeriveKey && n != N_C_DigestInit && n != N_C_Digest);
}

/* Let the real module forget what the token is said to have lost since the last call. */
static void catch_up(word session)
{
    word info[4];
    if (atomic_exchange(&removals_seen, control->removals) != control->removals
        && module->function[N_C_GetSessionInfo](session, (word)info, 0, 0, 0, 0, 0, 0) == CKR_OK)
        module->function[N_C_CloseAllSessions](info[0], 0, 0, 0, 0, 0, 0, 0);
    if (atomic_exchange(&logouts_seen, control->logouts) != control->logouts) {
        module->function[N_C_Logout](session, 0, 0, 0, 0, 0, 0, 0);
        logged_out = 1;
    }
}

/* What goes on before the real call; CKR_OK if that is to be made. */
static word refusal(enum number n, word session)
{
    struct orders *orders = &control->orders[n];
    orders->calls++;
    wait_as_told(orders);
    if (takes_a_session(n))
        catch_up(session);
    if (control->gone && n > N_C_GetSlotList)
        return control->gone;
    if (logged_out && uses_private_objects(n))
        return CKR_USER_NOT_LOGGED_IN;
    return !taken(&orders->after) && taken(&orders->times) ? orders->code : CKR_OK;
}

/* What is different in the answer to a call that went well. */
static void amend(enum number n, word a, word b, word c, word d)
{
    if (n == N_C_Initialize) {
        removals_seen = control->removals;
        logouts_seen = control->logouts;
    }
    if (n == N_C_Initialize || n == N_C_Login)
        logged_out = 0;
    else if (n == N_C_GetSlotList && control->gone && (unsigned char)a)
        *(word *)c = 0;
    else if (n == N_C_GetTokenInfo && control->serial[0])
        memcpy((char *)b + 80, control->serial, sizeof control->serial);
    else if (n == N_C_FindObjects && control->empty)
        *(word *)d = 0;
}

static word forward(enum number n, word a, word b, word c, word d, word e, word f, word g, word h)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    word result;

    pthread_once(&once, load);
    if (!control)
        return CKR_GENERAL_ERROR;
    if (n == N_C_GetFunctionList) {
        *(struct list **)a = &own;
        return CKR_OK;
    }
    if ((result = refusal(n, a)) == CKR_OK && (result = module->function[n](a, b, c, d, e, f, g, h)) == CKR_OK)
        amend(n, a, b, c, d);
    return result;
}

#define DEFINED(name) \
    word name(word a, word b, word c, word d, word e, word f, word g, word h) \
    { return forward(N_##name, a, b, c, d, e, f, g, h); }
FUNCTIONS(DEFINED)
