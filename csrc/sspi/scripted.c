/*
 * The scripted engine; scripted.h has the theory.
 *
 * Memory that a script hands out is counted, so that a test can say at its
 * end that nothing of it is left. The script's own bookkeeping is made
 * with the allocator that never fails on purpose (keep), because a test
 * makes allocations of the code under test fail, not those of the test.
 */
#include "sspi/scripted.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/atomic.h"

#ifdef _WIN32
typedef PTimeStamp expiry_t;
typedef SEC_GET_KEY_FN get_key_t;
#else
typedef void *expiry_t;
typedef void *get_key_t;
#endif

#define TURN 0xFFu   /* what "encryption" does to a byte */
#define FILL 0xEEu   /* of headers and trailers */

struct tw_cert {
    struct tw_count refs;
    struct tw_script *script;
    uint8_t *der;
    size_t len;
};

struct tw_store {
    struct tw_count refs;
};

struct tw_script {
    struct tw_script_entry *entries; /* with copies of their bytes */
    size_t count, room, next;
    struct tw_script_call *log;
    size_t log_count, log_room;
    struct tw_script_alive alive;
    char problem[200];
    /* the world */
    enum tw_script_remote remote;
    uint8_t *remote_der;
    size_t remote_len;
    int alert_received;
    SecPkgContext_StreamSizes sizes;
    uint32_t protocol;
    ULONG material; /* how much SetContextAttributes asked for */
};

/* In front of every output buffer: FreeContextBuffer has no handle. */
struct given {
    struct tw_script *script;
    size_t len;
};

static struct tw_script *used;
static tw_script_context make_context;

static const char *const slot_names[TW_SLOT_COUNT] = {
    "step", "encrypt", "decrypt", "control", "query", "set",
    "acquire", "verdict", "seal", "open", "forbid", "delete",
};

/* --- bookkeeping that does not fail on purpose --- */

/* The library's own, where a macro of that name has another one (the tests'
 * counted.h). */
static void *keep_malloc(size_t n)
{
    return (malloc)(n);
}

static void keep_free(void *p)
{
    (free)(p);
}

static void *keep(const void *data, size_t len)
{
    void *copy = keep_malloc(len > 0 ? len : 1);

    if (copy == NULL) {
        (void)fprintf(stderr, "scripted engine: out of memory\n");
        abort();
    }
    if (len > 0 && data != NULL) {
        memcpy(copy, data, len);
    }
    return copy;
}

static const uint8_t *keep_bytes(const uint8_t *data, size_t len)
{
    return data == NULL ? NULL : keep(data, len);
}

/* An array with room for one more; *room is its capacity. */
static void *grown(void *array, size_t count, size_t *room, size_t size)
{
    void *bigger;

    if (count < *room) {
        return array;
    }
    *room = *room == 0 ? 16 : 2 * *room;
    bigger = keep(NULL, *room * size);
    if (count > 0) {
        memcpy(bigger, array, count * size);
    }
    keep_free(array);
    return bigger;
}

static void drop(const uint8_t *data)
{
    keep_free((void *)(uintptr_t)data);
}

struct tw_script *tw_script_new(void)
{
    struct tw_script *s = keep(NULL, sizeof(*s));

    memset(s, 0, sizeof(*s));
    s->alert_received = -1;
    s->remote = TW_REMOTE_NONE;
    s->sizes.cbHeader = 5;
    s->sizes.cbTrailer = 17;
    s->sizes.cbMaximumMessage = 16384;
    s->sizes.cBuffers = 4;
    s->sizes.cbBlockSize = 1;
    s->protocol = TW_TLS1_3;
    return s;
}

void tw_script_free(struct tw_script *s)
{
    size_t i;

    if (s == NULL) {
        return;
    }
    if (used == s) {
        used = NULL;
    }
    for (i = 0; i < s->count; i++) {
        drop(s->entries[i].input);
        drop(s->entries[i].token);
        drop(s->entries[i].alert);
        drop(s->entries[i].data);
        drop(s->entries[i].remote_der);
    }
    for (i = 0; i < s->log_count; i++) {
        keep_free(s->log[i].input);
    }
    keep_free(s->entries);
    keep_free(s->log);
    keep_free(s->remote_der);
    keep_free(s);
}

void tw_script_entry_init(struct tw_script_entry *e, enum tw_slot slot)
{
    memset(e, 0, sizeof(*e));
    e->slot = slot;
    e->has_context = -1;
    e->attribute = -1;
    e->extra = -1;
    e->missing = -1;
    e->attributes = -1;
    e->header = -1;
    e->trailer = -1;
}

bool tw_script_add(struct tw_script *s, const struct tw_script_entry *entry)
{
    struct tw_script_entry *e;

    s->entries = grown(s->entries, s->count, &s->room, sizeof(*e));
    e = &s->entries[s->count++];
    *e = *entry;
    e->input = keep_bytes(e->input, e->input_len);
    e->token = keep_bytes(e->token, e->token_len);
    e->alert = keep_bytes(e->alert, e->alert_len);
    e->data = keep_bytes(e->data, e->data_len);
    e->remote_der = keep_bytes(e->remote_der, e->remote_len);
    return true;
}

size_t tw_script_left(const struct tw_script *s)
{
    return s->count - s->next;
}

const char *tw_script_problem(const struct tw_script *s)
{
    return s->problem;
}

size_t tw_script_log_length(const struct tw_script *s)
{
    return s->log_count;
}

const struct tw_script_call *tw_script_log(const struct tw_script *s,
                                           size_t index)
{
    return &s->log[index];
}

void tw_script_count(const struct tw_script *s, struct tw_script_alive *out)
{
    *out = s->alive;
}

void tw_script_use(struct tw_script *s)
{
    used = s;
}

void tw_script_contexts(tw_script_context make)
{
    make_context = make;
}

/* --- playing --- */

static void complain(struct tw_script *s, const char *what, enum tw_slot slot)
{
    if (s->problem[0] == '\0') {
        (void)snprintf(s->problem, sizeof(s->problem),
                       "call %zu (%s), entry %zu (%s): %s",
                       s->log_count, slot_names[slot], s->next,
                       s->next < s->count
                           ? slot_names[s->entries[s->next].slot]
                           : "none",
                       what);
    }
}

static struct tw_script_call *note(struct tw_script *s, enum tw_slot slot)
{
    struct tw_script_call *call;

    s->log = grown(s->log, s->log_count, &s->log_room, sizeof(*call));
    call = &s->log[s->log_count++];
    memset(call, 0, sizeof(*call));
    call->slot = slot;
    return call;
}

static void note_buffers(struct tw_script_call *call, PSecBufferDesc desc,
                         ULONG data_type)
{
    ULONG i;

    for (i = 0; desc != NULL && i < desc->cBuffers; i++) {
        const SecBuffer *b = &desc->pBuffers[i];

        if (i < 4) {
            call->types[i] = b->BufferType;
        }
        if (b->BufferType == data_type && call->input == NULL) {
            call->input = keep(b->pvBuffer, b->cbBuffer);
            call->input_len = b->cbBuffer;
        }
    }
    call->buffers = desc == NULL ? 0 : desc->cBuffers;
}

/* The entry for a call that must be in the script; NULL with a problem. */
static struct tw_script_entry *expected(struct tw_script *s,
                                        enum tw_slot slot)
{
    if (s->next >= s->count || s->entries[s->next].slot != slot) {
        complain(s, "not the call that the script expects", slot);
        return NULL;
    }
    return &s->entries[s->next];
}

/* The same for a call that the world can answer too; NULL: it does. */
static struct tw_script_entry *optional(struct tw_script *s,
                                        enum tw_slot slot)
{
    return s->next < s->count && s->entries[s->next].slot == slot
               ? &s->entries[s->next]
               : NULL;
}

/* The call is answered: the world becomes what the entry says. */
static SECURITY_STATUS played(struct tw_script *s,
                              struct tw_script_entry *e)
{
    s->next++;
    if ((e->set & TW_WORLD_REMOTE) != 0) {
        keep_free(s->remote_der);
        s->remote = e->remote;
        s->remote_der = keep(e->remote_der, e->remote_len);
        s->remote_len = e->remote_len;
    }
    if ((e->set & TW_WORLD_ALERT) != 0) {
        s->alert_received = e->alert_received;
    }
    if ((e->set & TW_WORLD_SIZES) != 0) {
        s->sizes = e->sizes;
    }
    if ((e->set & TW_WORLD_PROTOCOL) != 0) {
        s->protocol = e->protocol;
    }
    s->log[s->log_count - 1].status = e->status;
    return e->status;
}

static bool input_differs(const struct tw_script_entry *e,
                          const struct tw_script_call *call)
{
    return e->input != NULL
           && (call->input == NULL || call->input_len != e->input_len
               || memcmp(call->input, e->input, e->input_len) != 0);
}

static struct tw_script *script_of(const SecHandle *handle)
{
    return handle != NULL && SecIsValidHandle(handle)
               ? (struct tw_script *)handle->dwLower
               : NULL;
}

/* --- the function table --- */

static struct tw_script_asked asked_for(ULONG use, const void *auth)
{
    struct tw_script_asked a = {.use = use};
    const SCHANNEL_CRED *four = auth;
    const SCH_CREDENTIALS *five = auth;

    memcpy(&a.version, auth, sizeof(a.version)); /* both begin with it */
    if (a.version == SCHANNEL_CRED_VERSION) {
        a.certs = four->cCreds;
        a.flags = four->dwFlags;
        a.lifespan = four->dwSessionLifespan;
        a.protocols = four->grbitEnabledProtocols;
        a.min_bits = four->dwMinimumCipherStrength;
        a.max_bits = four->dwMaximumCipherStrength;
    } else if (a.version == SCH_CREDENTIALS_VERSION) {
        a.certs = five->cCreds;
        a.flags = five->dwFlags;
        a.lifespan = five->dwSessionLifespan;
        a.protocols = five->cTlsParameters == 0
                          ? ~(ULONG)0
                          : ~five->pTlsParameters[0].grbitDisabledProtocols;
    }
    return a;
}

/* The script's own credentials, made by either kind of acquiring. */
static void new_credentials(struct tw_script *s, PCredHandle out)
{
    out->dwLower = (uintptr_t)s;
    out->dwUpper = 0;
    s->alive.credentials++;
}

static SECURITY_STATUS SEC_ENTRY acquire_credentials(
    SEC_WCHAR *principal, SEC_WCHAR *package, ULONG use, void *logon,
    void *auth, get_key_t get_key, void *key_argument, PCredHandle out,
    PTimeStamp expiry)
{
    static const SEC_WCHAR schannel[] = UNISP_NAME_W;
    struct tw_script *s = used;
    struct tw_script_asked asked;
    struct tw_script_call *call;
    struct tw_script_entry *e;
    SECURITY_STATUS status = SEC_E_OK;

    (void)principal;
    (void)logon;
    (void)get_key;
    (void)key_argument;
    (void)expiry;
    if (s == NULL) {
        return SEC_E_NO_CREDENTIALS;
    }
    if (memcmp(package, schannel, sizeof(schannel)) != 0) {
        return SEC_E_SECPKG_NOT_FOUND;
    }
    asked = asked_for(use, auth);
    call = note(s, TW_SLOT_ACQUIRE);
    call->input = keep(&asked, sizeof(asked));
    call->input_len = sizeof(asked);
    e = optional(s, TW_SLOT_ACQUIRE);
    if (e != NULL) {
        status = played(s, e);
    }
    if (status == SEC_E_OK) {
        new_credentials(s, out);
    }
    return status;
}

static SECURITY_STATUS SEC_ENTRY free_credentials(PCredHandle handle)
{
    struct tw_script *s = script_of(handle);

    if (s == NULL) {
        return SEC_E_INVALID_HANDLE;
    }
    s->alive.credentials--;
    SecInvalidateHandle(handle);
    return SEC_E_OK;
}

/* A copy that FreeContextBuffer takes back. */
static void *given(struct tw_script *s, const void *data, size_t len)
{
    struct given *g = keep(NULL, sizeof(*g) + len);

    g->script = s;
    g->len = len;
    memcpy(g + 1, data, len);
    s->alive.buffers++;
    return g + 1;
}

static void give(struct tw_script *s, SecBuffer *b, const uint8_t *data,
                 size_t len)
{
    b->pvBuffer = given(s, data, len);
    b->cbBuffer = (ULONG)len;
}

static void give_tokens(struct tw_script *s,
                        const struct tw_script_entry *e, PSecBufferDesc out)
{
    ULONG i;

    for (i = 0; out != NULL && i < out->cBuffers; i++) {
        SecBuffer *b = &out->pBuffers[i];

        if (b->BufferType == SECBUFFER_TOKEN && e->token != NULL) {
            give(s, b, e->token, e->token_len);
        } else if (b->BufferType == SECBUFFER_ALERT && e->alert != NULL) {
            give(s, b, e->alert, e->alert_len);
        }
    }
}

/* EXTRA and MISSING go where an EMPTY buffer is; pvBuffer says nothing. */
static void report(PSecBufferDesc in, ULONG type, int64_t len)
{
    ULONG i;

    for (i = 1; len >= 0 && in != NULL && i < in->cBuffers; i++) {
        if (in->pBuffers[i].BufferType == SECBUFFER_EMPTY) {
            in->pBuffers[i].BufferType = type;
            in->pBuffers[i].cbBuffer = (ULONG)len;
            in->pBuffers[i].pvBuffer = NULL;
            return;
        }
    }
}

static const char *step_differs(const struct tw_script_entry *e,
                                const struct tw_script_call *call)
{
    if (e->has_context >= 0 && e->has_context != call->has_context) {
        return "with the wrong context";
    }
    if ((call->flags & e->flags_set) != e->flags_set
        || (call->flags & e->flags_clear) != 0) {
        return "with the wrong requirements";
    }
    if (e->no_input != 0 && call->input != NULL) {
        return "with input";
    }
    return input_differs(e, call) ? "with the wrong input" : NULL;
}

static SECURITY_STATUS step(struct tw_script *s, PCtxtHandle old, ULONG req,
                            PSecBufferDesc in, PCtxtHandle fresh,
                            PSecBufferDesc out, ULONG *attributes)
{
    struct tw_script_call *call = note(s, TW_SLOT_STEP);
    struct tw_script_entry *e = expected(s, TW_SLOT_STEP);
    const char *wrong;

    call->has_context = old != NULL;
    call->flags = req;
    note_buffers(call, in, SECBUFFER_TOKEN);
    wrong = e == NULL ? NULL : step_differs(e, call);
    if (wrong != NULL) {
        complain(s, wrong, TW_SLOT_STEP);
    }
    if (e == NULL || wrong != NULL) {
        return call->status = SEC_E_INTERNAL_ERROR;
    }
    *attributes = e->attributes < 0 ? req : (ULONG)e->attributes;
    give_tokens(s, e, out);
    report(in, SECBUFFER_EXTRA, e->extra);
    report(in, SECBUFFER_MISSING, e->missing);
    if (old == NULL
        && (e->status >= 0 ? !e->no_handle : e->stray_handle)) {
        fresh->dwLower = (uintptr_t)s;
        fresh->dwUpper = 0;
        s->alive.contexts++;
    }
    return played(s, e);
}

static SECURITY_STATUS SEC_ENTRY initialize_context(
    PCredHandle cred, PCtxtHandle old, SEC_WCHAR *target, ULONG req,
    ULONG reserved1, ULONG drep, PSecBufferDesc in, ULONG reserved2,
    PCtxtHandle fresh, PSecBufferDesc out, ULONG *attributes,
    expiry_t expiry)
{
    struct tw_script *s = script_of(cred);

    (void)target;
    (void)reserved1;
    (void)drep;
    (void)reserved2;
    (void)expiry;
    return s == NULL ? SEC_E_INVALID_HANDLE
                     : step(s, old, req, in, fresh, out, attributes);
}

static SECURITY_STATUS SEC_ENTRY accept_context(
    PCredHandle cred, PCtxtHandle old, PSecBufferDesc in, ULONG req,
    ULONG drep, PCtxtHandle fresh, PSecBufferDesc out, ULONG *attributes,
    expiry_t expiry)
{
    struct tw_script *s = script_of(cred);

    (void)drep;
    (void)expiry;
    return s == NULL ? SEC_E_INVALID_HANDLE
                     : step(s, old, req, in, fresh, out, attributes);
}

static SECURITY_STATUS SEC_ENTRY delete_context(PCtxtHandle handle)
{
    struct tw_script *s = script_of(handle);

    if (s == NULL) {
        return SEC_E_INVALID_HANDLE;
    }
    (void)note(s, TW_SLOT_DELETE);
    s->alive.contexts--;
    SecInvalidateHandle(handle);
    return SEC_E_OK;
}

static SECURITY_STATUS SEC_ENTRY apply_control(PCtxtHandle handle,
                                           PSecBufferDesc in)
{
    struct tw_script *s = script_of(handle);
    struct tw_script_call *call;
    struct tw_script_entry *e;
    ULONG kind = 0;

    if (s == NULL) {
        return SEC_E_INVALID_HANDLE;
    }
    call = note(s, TW_SLOT_CONTROL);
    e = optional(s, TW_SLOT_CONTROL);
    call->has_context = 1;
    note_buffers(call, in, SECBUFFER_TOKEN);
    if (call->input_len >= sizeof(kind)) {
        memcpy(&kind, call->input, sizeof(kind));
    }
    call->flags = kind;
    if (e == NULL) {
        return call->status = SEC_E_UNSUPPORTED_FUNCTION;
    }
    if (e->attribute >= 0 && e->attribute != (int64_t)kind) {
        complain(s, "with another token", TW_SLOT_CONTROL);
        return call->status = SEC_E_INTERNAL_ERROR;
    }
    return played(s, e);
}

/* --- what a context tells of itself --- */

static const uint8_t an_issuer[] = "an issuer";
static const uint8_t alpn_name[] = "scripted";

/* Names, each with a NUL, in one block: their places, then themselves. */
static CERT_NAME_BLOB *blobs(struct tw_script *s, const uint8_t *data,
                             size_t len, ULONG *count)
{
    CERT_NAME_BLOB *list;
    uint8_t *block;
    uint8_t *at;
    size_t size;
    size_t i;

    *count = 0;
    for (i = 0; i < len; i++) {
        *count += data[i] == '\0';
    }
    size = *count * sizeof(*list);
    block = keep(NULL, size + len);
    memset(block, 0, size);
    memcpy(block + size, data, len);
    list = given(s, block, size + len);
    keep_free(block);
    at = (uint8_t *)list + size;
    for (i = 0; i < *count; i++) {
        list[i].pbData = at;
        list[i].cbData = (ULONG)strlen((char *)at);
        at += list[i].cbData + 1;
    }
    return list;
}

static void tell_alpn(SecPkgContext_ApplicationProtocol *out)
{
    memset(out, 0, sizeof(*out));
    out->ProtoNegoStatus = SecApplicationProtocolNegotiationStatus_Success;
    out->ProtoNegoExt = SecApplicationProtocolNegotiationExt_ALPN;
    out->ProtocolIdSize = sizeof(alpn_name) - 1;
    memcpy(out->ProtocolId, alpn_name, sizeof(alpn_name) - 1);
}

/* The structures that point to something; data NULL: to nothing. false: it
   is none of them. */
static bool tell_pointing(struct tw_script *s, ULONG attribute,
                          const uint8_t *data, size_t len, void *out)
{
    SecPkgContext_IssuerListInfoEx *issuers = out;
    SecPkgContext_KeyingMaterial *material = out;
    SecPkgContext_Bindings *bindings = out;

    switch (attribute) {
    case SECPKG_ATTR_REMOTE_CERT_CONTEXT:
    case SECPKG_ATTR_REMOTE_CERT_CHAIN:
    case SECPKG_ATTR_LOCAL_CERT_CONTEXT:
        *(PCCERT_CONTEXT *)out =
            data == NULL ? NULL : make_context(s, data, len);
        return true;
    case SECPKG_ATTR_ISSUER_LIST_EX:
        issuers->aIssuers = NULL;
        issuers->cIssuers = 0;
        if (data != NULL) {
            issuers->aIssuers = blobs(s, data, len, &issuers->cIssuers);
        }
        return true;
    case SECPKG_ATTR_KEYING_MATERIAL:
        material->cbKeyingMaterial = (ULONG)len;
        material->pbKeyingMaterial = data == NULL ? NULL
                                                  : given(s, data, len);
        return true;
    case SECPKG_ATTR_UNIQUE_BINDINGS:
    case SECPKG_ATTR_ENDPOINT_BINDINGS:
        bindings->BindingsLength = (ULONG)len;
        bindings->Bindings = data == NULL ? NULL : given(s, data, len);
        return true;
    default:
        return false;
    }
}

static void tell_material(struct tw_script *s, void *out)
{
    uint8_t *material = keep(NULL, s->material);

    memset(material, FILL, s->material);
    (void)tell_pointing(s, SECPKG_ATTR_KEYING_MATERIAL, material,
                        s->material, out);
    keep_free(material);
}

/* Without an entry: the script's world. */
static SECURITY_STATUS tell_world(struct tw_script *s, ULONG attribute,
                                  void *out)
{
    SecPkgContext_ConnectionInfo *connection = out;

    switch (attribute) {
    case SECPKG_ATTR_STREAM_SIZES:
        *(SecPkgContext_StreamSizes *)out = s->sizes;
        return SEC_E_OK;
    case SECPKG_ATTR_CONNECTION_INFO:
        if (s->protocol == 0) {
            return SEC_E_INVALID_HANDLE;
        }
        memset(connection, 0, sizeof(*connection));
        connection->dwProtocol = s->protocol == TW_TLS1_3
                                     ? SP_PROT_TLS1_3_CLIENT
                                     : SP_PROT_TLS1_2_CLIENT;
        return SEC_E_OK;
    case SECPKG_ATTR_APPLICATION_PROTOCOL:
        tell_alpn(out);
        return SEC_E_OK;
    case SECPKG_ATTR_REMOTE_CERT_CONTEXT:
        if (s->remote != TW_REMOTE_CERT) {
            return s->remote == TW_REMOTE_NONE ? SEC_E_NO_CREDENTIALS
                                               : SEC_E_INVALID_HANDLE;
        }
        (void)tell_pointing(s, attribute, s->remote_der, s->remote_len,
                            out);
        return SEC_E_OK;
    case SECPKG_ATTR_LOCAL_CERT_CONTEXT:
        return SEC_E_NO_CREDENTIALS;
    case SECPKG_ATTR_ISSUER_LIST_EX:
        (void)tell_pointing(s, attribute, an_issuer, sizeof(an_issuer),
                            out);
        return SEC_E_OK;
    case SECPKG_ATTR_KEYING_MATERIAL:
        tell_material(s, out);
        return SEC_E_OK;
    default:
        return SEC_E_UNSUPPORTED_FUNCTION;
    }
}

static SECURITY_STATUS SEC_ENTRY query(PCtxtHandle handle, ULONG attribute,
                                       void *out)
{
    struct tw_script *s = script_of(handle);
    struct tw_script_call *call;
    struct tw_script_entry *e;

    if (s == NULL) {
        return SEC_E_INVALID_HANDLE;
    }
    call = note(s, TW_SLOT_QUERY);
    e = optional(s, TW_SLOT_QUERY);
    call->has_context = 1;
    call->flags = attribute;
    if (e == NULL
        || (e->attribute >= 0 && e->attribute != (int64_t)attribute)) {
        return call->status = tell_world(s, attribute, out);
    }
    if (e->status == SEC_E_OK
        && !tell_pointing(s, attribute, e->data, e->data_len, out)
        && e->token != NULL) {
        memcpy(out, e->token, e->token_len);
    }
    return played(s, e);
}

static SECURITY_STATUS SEC_ENTRY set_attribute(PCtxtHandle handle,
                                               ULONG attribute, void *value,
                                               ULONG len)
{
    struct tw_script *s = script_of(handle);
    const SecPkgContext_KeyingMaterialInfo *ask = value;
    struct tw_script_call *call;
    struct tw_script_entry *e;

    if (s == NULL) {
        return SEC_E_INVALID_HANDLE;
    }
    call = note(s, TW_SLOT_SET);
    e = optional(s, TW_SLOT_SET);
    call->has_context = 1;
    call->flags = attribute;
    if (attribute == SECPKG_ATTR_KEYING_MATERIAL_INFO
        && len == sizeof(*ask)) {
        s->material = ask->cbKeyingMaterial;
        call->input_len = (size_t)ask->cbLabel + ask->cbContextValue;
        call->input = keep(NULL, call->input_len);
        memcpy(call->input, ask->pszLabel, ask->cbLabel);
        if (ask->cbContextValue > 0) {
            memcpy(call->input + ask->cbLabel, ask->pbContextValue,
                   ask->cbContextValue);
        }
        call->status = SEC_E_OK;
    } else if (attribute == SECPKG_ATTR_UI_INFO
               && len == sizeof(SecPkgContext_UiInfo)) {
        call->input_len = len;
        call->input = keep(value, len);
        call->status = SEC_E_OK;
    } else {
        call->status = SEC_E_UNSUPPORTED_FUNCTION;
    }
    return e == NULL ? call->status : played(s, e);
}

static SECURITY_STATUS SEC_ENTRY free_buffer(void *buffer)
{
    struct given *g = buffer;

    if (g != NULL) {
        g--;
        g->script->alive.buffers--;
        keep_free(g);
    }
    return SEC_E_OK;
}

static SecBuffer *buffer_of(PSecBufferDesc desc, ULONG type)
{
    ULONG i;

    for (i = 0; desc != NULL && i < desc->cBuffers; i++) {
        if (desc->pBuffers[i].BufferType == type) {
            return &desc->pBuffers[i];
        }
    }
    return NULL;
}

static SECURITY_STATUS SEC_ENTRY encrypt(PCtxtHandle handle, ULONG qop,
                                     PSecBufferDesc desc, ULONG seq)
{
    struct tw_script *s = script_of(handle);
    SecBuffer *header = buffer_of(desc, SECBUFFER_STREAM_HEADER);
    SecBuffer *data = buffer_of(desc, SECBUFFER_DATA);
    SecBuffer *trailer = buffer_of(desc, SECBUFFER_STREAM_TRAILER);
    struct tw_script_call *call;
    struct tw_script_entry *e;
    uint8_t *p;
    size_t body;
    size_t i;

    (void)qop;
    (void)seq;
    if (s == NULL) {
        return SEC_E_INVALID_HANDLE;
    }
    call = note(s, TW_SLOT_ENCRYPT);
    call->has_context = 1;
    note_buffers(call, desc, SECBUFFER_DATA);
    e = expected(s, TW_SLOT_ENCRYPT);
    if (e != NULL && (header == NULL || data == NULL || trailer == NULL
                      || input_differs(e, call))) {
        complain(s, "with the wrong buffers", TW_SLOT_ENCRYPT);
        e = NULL;
    }
    if (e == NULL) {
        return call->status = SEC_E_INTERNAL_ERROR;
    }
    if (e->status == SEC_E_OK) {
        if (e->header >= 0) {
            header->cbBuffer = (ULONG)e->header;
        }
        if (e->trailer >= 0) {
            trailer->cbBuffer = (ULONG)e->trailer;
        }
        p = data->pvBuffer;
        for (i = 0; i < data->cbBuffer; i++) {
            p[i] ^= TURN;
        }
        if (trailer->cbBuffer <= s->sizes.cbTrailer) {
            memset(trailer->pvBuffer, FILL, trailer->cbBuffer);
        }
        if (header->cbBuffer >= 5
            && header->cbBuffer <= s->sizes.cbHeader) {
            body = header->cbBuffer - 5 + data->cbBuffer
                   + trailer->cbBuffer;
            p = header->pvBuffer;
            memset(p, FILL, header->cbBuffer);
            p[0] = 23;
            p[1] = p[2] = 3;
            p[3] = (uint8_t)(body >> 8);
            p[4] = (uint8_t)body;
        }
    }
    return played(s, e);
}

/* HEADER, DATA, TRAILER, EXTRA: the data lies behind five bytes. */
static void usual_parts(struct tw_script_entry *e, size_t len)
{
    size_t extra = e->extra > 0 ? (size_t)e->extra : 0;
    size_t record = len > extra ? len - extra : 0;
    size_t head = record < 5 ? record : 5;
    size_t tail = record - head > e->data_len
                      ? record - head - e->data_len
                      : 0;

    e->parts[0] = (struct tw_script_part){SECBUFFER_STREAM_HEADER, 0, head};
    e->parts[1] = (struct tw_script_part){SECBUFFER_DATA, (int64_t)head,
                                          e->data_len};
    e->parts[2] = (struct tw_script_part){
        SECBUFFER_STREAM_TRAILER, (int64_t)(head + e->data_len), tail};
    e->parts[3] = extra > 0
                      ? (struct tw_script_part){SECBUFFER_EXTRA,
                                                (int64_t)record, extra}
                      : (struct tw_script_part){SECBUFFER_EMPTY, -1, 0};
    e->part_count = 4;
}

static SECURITY_STATUS SEC_ENTRY decrypt(PCtxtHandle handle,
                                     PSecBufferDesc desc, ULONG seq,
                                     ULONG *qop)
{
    struct tw_script *s = script_of(handle);
    struct tw_script_call *call;
    struct tw_script_entry *e;
    uint8_t *base;
    size_t len;
    size_t i;

    (void)seq;
    if (s == NULL) {
        return SEC_E_INVALID_HANDLE;
    }
    if (qop != NULL) {
        *qop = 0;
    }
    call = note(s, TW_SLOT_DECRYPT);
    call->has_context = 1;
    note_buffers(call, desc, SECBUFFER_DATA);
    e = expected(s, TW_SLOT_DECRYPT);
    if (e != NULL
        && (desc->cBuffers != 4 || input_differs(e, call)
            || desc->pBuffers[0].BufferType != SECBUFFER_DATA)) {
        complain(s, "with the wrong buffers", TW_SLOT_DECRYPT);
        e = NULL;
    }
    if (e == NULL) {
        return call->status = SEC_E_INTERNAL_ERROR;
    }
    base = desc->pBuffers[0].pvBuffer;
    len = desc->pBuffers[0].cbBuffer;
    if (e->status == SEC_E_INCOMPLETE_MESSAGE) {
        report(desc, SECBUFFER_MISSING, e->missing);
        return played(s, e);
    }
    if (e->status >= 0 || e->part_count > 0) {
        if (e->part_count == 0) {
            usual_parts(e, len);
        }
        for (i = 0; i < e->part_count; i++) {
            const struct tw_script_part *part = &e->parts[i];
            SecBuffer *b = &desc->pBuffers[i];

            b->BufferType = part->type;
            b->cbBuffer = (ULONG)part->len;
            b->pvBuffer = part->at < 0 ? NULL : base + part->at;
            if (part->type == SECBUFFER_DATA && part->at >= 0
                && (size_t)part->at + e->data_len <= len
                && e->data_len > 0) {
                memcpy(b->pvBuffer, e->data, e->data_len);
            }
        }
    }
    return played(s, e);
}

static const SecurityFunctionTableW function_table = {
    .dwVersion = SECURITY_SUPPORT_PROVIDER_INTERFACE_VERSION_2,
    .AcquireCredentialsHandleW = acquire_credentials,
    .FreeCredentialsHandle = free_credentials,
    .InitializeSecurityContextW = initialize_context,
    .AcceptSecurityContext = accept_context,
    .DeleteSecurityContext = delete_context,
    .ApplyControlToken = apply_control,
    .QueryContextAttributesW = query,
    .SetContextAttributesW = set_attribute,
    .FreeContextBuffer = free_buffer,
    .EncryptMessage = encrypt,
    .DecryptMessage = decrypt,
};

const SecurityFunctionTableW *tw_script_table(void)
{
    return &function_table;
}

/* --- the provider's own slots --- */

static const SecurityFunctionTableW *table(void)
{
    return used == NULL ? NULL : &function_table;
}

static const char *version(void)
{
    return "scripted";
}

static int fips(void)
{
    return -1;
}

static enum tw_status acquire(const struct tw_credentials_config *config,
                              CredHandle *out, struct tw_error *err)
{
    struct tw_script *s = used;
    struct tw_script_call *call;
    struct tw_script_entry *e;
    SECURITY_STATUS status = SEC_E_OK;

    if (s == NULL) {
        return tw_error_set(err, TW_E_STATE, (int32_t)SEC_E_INTERNAL_ERROR,
                            "no script is in use");
    }
    call = note(s, TW_SLOT_ACQUIRE);
    call->flags = (ULONG)config->cert_count;
    e = optional(s, TW_SLOT_ACQUIRE);
    if (e != NULL) {
        status = played(s, e);
    }
    if (status != SEC_E_OK) {
        return tw_error_set(err, TW_E_TLS, (int32_t)status,
                            "the script refuses the credentials");
    }
    new_credentials(s, out);
    return TW_DONE;
}

/* seal and open: what is given, and how much of src was taken. */
static SECURITY_STATUS convert(CtxtHandle *handle, enum tw_slot slot,
                               const uint8_t *src, size_t len, uint8_t *dst,
                               size_t room, size_t *taken, size_t *made)
{
    struct tw_script *s = script_of(handle);
    struct tw_script_entry *e = s == NULL ? NULL : optional(s, slot);
    struct tw_script_call *call;
    const uint8_t *given;
    size_t n;

    *taken = 0;
    *made = 0;
    if (e == NULL) {
        return SEC_E_UNSUPPORTED_FUNCTION;
    }
    call = note(s, slot);
    call->has_context = 1;
    call->input = keep(src, len);
    call->input_len = len;
    given = slot == TW_SLOT_SEAL ? e->token : e->data;
    n = slot == TW_SLOT_SEAL ? e->token_len : e->data_len;
    if (input_differs(e, call) || n > room) {
        complain(s, "with the wrong memory", slot);
        return call->status = SEC_E_INTERNAL_ERROR;
    }
    if (n > 0) {
        memcpy(dst, given, n);
    }
    *made = n;
    *taken = e->header < 0 || (size_t)e->header > len ? len
                                                      : (size_t)e->header;
    return played(s, e);
}

static SECURITY_STATUS seal(CtxtHandle *handle, const uint8_t *src,
                            size_t len, uint8_t *dst, size_t room,
                            size_t *taken, size_t *made)
{
    return convert(handle, TW_SLOT_SEAL, src, len, dst, room, taken, made);
}

static SECURITY_STATUS open_records(CtxtHandle *handle, const uint8_t *src,
                                    size_t len, uint8_t *dst, size_t room,
                                    size_t *used, size_t *made)
{
    return convert(handle, TW_SLOT_OPEN, src, len, dst, room, used, made);
}

static SECURITY_STATUS forbid_resumption(CtxtHandle *handle)
{
    struct tw_script *s = script_of(handle);
    struct tw_script_entry *e = s == NULL ? NULL
                                          : optional(s, TW_SLOT_FORBID);

    if (e == NULL) {
        return SEC_E_OK;
    }
    note(s, TW_SLOT_FORBID)->has_context = 1;
    return played(s, e);
}

static SECURITY_STATUS verdict(CtxtHandle *handle, SECURITY_STATUS code,
                               uint8_t *alert, size_t *alert_len)
{
    struct tw_script *s = script_of(handle);
    size_t room = *alert_len;
    struct tw_script_call *call;
    struct tw_script_entry *e;

    *alert_len = 0;
    if (s == NULL) {
        return SEC_E_INVALID_HANDLE;
    }
    call = note(s, TW_SLOT_VERDICT);
    call->has_context = 1;
    call->flags = (ULONG)code;
    e = optional(s, TW_SLOT_VERDICT);
    if (e == NULL) {
        return call->status = SEC_E_OK;
    }
    if (e->token != NULL && e->token_len <= room) {
        memcpy(alert, e->token, e->token_len);
        *alert_len = e->token_len;
    }
    return played(s, e);
}

struct tw_cert *tw_script_cert_new(struct tw_script *s, const uint8_t *der,
                                   size_t len)
{
    struct tw_cert *cert = keep(NULL, sizeof(*cert));

    tw_count_init(&cert->refs, 1);
    cert->script = s;
    cert->der = keep(der, len);
    cert->len = len;
    s->alive.certs++;
    return cert;
}

static struct tw_cert *cert_ref(struct tw_cert *cert)
{
    if (cert != NULL) {
        tw_count_up(&cert->refs);
    }
    return cert;
}

static void cert_free(struct tw_cert *cert)
{
    if (cert != NULL && tw_count_down(&cert->refs) == 0) {
        cert->script->alive.certs--;
        keep_free(cert->der);
        keep_free(cert);
    }
}

static void cert_der(struct tw_cert *cert, const uint8_t **der, size_t *len)
{
    *der = cert->der;
    *len = cert->len;
}

static bool cert_has_key(struct tw_cert *cert)
{
    (void)cert;
    return true;
}

/* One line of the text: false at its end. */
static bool next_line(const char **at, const char *end, char *key,
                      size_t room, const char **value, size_t *len)
{
    const char *line = *at;
    const char *stop;
    const char *equals;

    if (line >= end) {
        return false;
    }
    stop = memchr(line, '\n', (size_t)(end - line));
    stop = stop == NULL ? end : stop;
    equals = memchr(line, '=', (size_t)(stop - line));
    equals = equals == NULL ? stop : equals;
    (void)snprintf(key, room, "%.*s", (int)(equals - line), line);
    *value = equals < stop ? equals + 1 : stop;
    *len = (size_t)(stop - *value);
    *at = stop + 1;
    return true;
}

static enum tw_status cert_info(struct tw_cert *cert, tw_sink sink,
                                void *arg, struct tw_error *err)
{
    const char *at = (const char *)cert->der;
    const char *end = at + cert->len;
    const char *value;
    size_t len;
    char key[32];

    (void)err;
    while (next_line(&at, end, key, sizeof(key), &value, &len)) {
        if (!sink(arg, key, value, len)) {
            break;
        }
    }
    return TW_DONE;
}

static bool cert_matches(struct tw_cert *cert, const char *host, bool cn)
{
    const char *at = (const char *)cert->der;
    const char *end = at + cert->len;
    const char *value;
    size_t len;
    char key[32];

    (void)cn;
    while (next_line(&at, end, key, sizeof(key), &value, &len)) {
        if (strcmp(key, "dns") == 0 && len == strlen(host)
            && memcmp(value, host, len) == 0) {
            return true;
        }
    }
    return false;
}

static enum tw_status remote_cert(CtxtHandle *handle, struct tw_cert **out,
                                  struct tw_error *err)
{
    struct tw_script *s = script_of(handle);

    *out = NULL;
    if (s != NULL && s->remote == TW_REMOTE_CERT) {
        *out = tw_script_cert_new(s, s->remote_der, s->remote_len);
        return TW_DONE;
    }
    if (s != NULL && s->remote == TW_REMOTE_UNKNOWN) {
        return TW_WANT_READ;
    }
    return tw_error_set(err, TW_E_NOT_FOUND, (int32_t)SEC_E_NO_CREDENTIALS,
                        "the peer sent no certificate");
}

static enum tw_status local_cert(CtxtHandle *handle, struct tw_cert **out,
                                 struct tw_error *err)
{
    (void)handle;
    *out = NULL;
    return tw_error_set(err, TW_E_NOT_FOUND, (int32_t)SEC_E_NO_CREDENTIALS,
                        "this end has no certificate");
}

static enum tw_status facts(CtxtHandle *handle, struct tw_facts *out,
                            struct tw_error *err)
{
    struct tw_script *s = script_of(handle);

    memset(out, 0, sizeof(*out));
    if (s == NULL || s->protocol == 0) {
        return tw_error_set(err, TW_E_STATE, (int32_t)SEC_E_INVALID_HANDLE,
                            "the script has no facts");
    }
    out->protocol = s->protocol;
    out->resumed = -1;
    memcpy(out->alpn, "scripted", sizeof("scripted"));
    return TW_DONE;
}

static enum tw_status binding(CtxtHandle *handle, enum tw_binding kind,
                              const char *label, const uint8_t *context,
                              size_t context_len, uint8_t *out, size_t *len,
                              struct tw_error *err)
{
    (void)handle;
    (void)kind;
    (void)label;
    (void)context;
    (void)context_len;
    (void)err;
    memset(out, FILL, *len);
    return TW_DONE;
}

static enum tw_status issuers(CtxtHandle *handle, tw_sink sink, void *arg,
                              struct tw_error *err)
{
    (void)handle;
    (void)err;
    (void)sink(arg, NULL, "an issuer", 9);
    return TW_DONE;
}

static void ocsp(CtxtHandle *handle, tw_sink sink, void *arg)
{
    (void)handle;
    (void)sink(arg, NULL, "staple", 6);
}

static int alert_received(CtxtHandle *handle)
{
    struct tw_script *s = script_of(handle);

    return s == NULL ? -1 : s->alert_received;
}

static enum tw_status store_new(struct tw_store **out, struct tw_error *err)
{
    struct tw_store *store = keep(NULL, sizeof(*store));

    (void)err;
    tw_count_init(&store->refs, 1);
    *out = store;
    return TW_DONE;
}

static struct tw_store *store_ref(struct tw_store *store)
{
    tw_count_up(&store->refs);
    return store;
}

static void store_free(struct tw_store *store)
{
    if (store != NULL && tw_count_down(&store->refs) == 0) {
        keep_free(store);
    }
}

/* Certificates are only held and compared here: the slots that read,
   verify and export real ones are empty, and core/ calls none of them. */
const struct tw_provider tw_provider_scripted = {
    .name = "scripted",
    .table = table,
    .version = version,
    .fips = fips,
    .acquire = acquire,
    .seal = seal,
    .open = open_records,
    .forbid_resumption = forbid_resumption,
    .verdict = verdict,
    .remote_cert = remote_cert,
    .local_cert = local_cert,
    .facts = facts,
    .binding = binding,
    .issuers = issuers,
    .ocsp = ocsp,
    .alert_received = alert_received,
    .cert_ref = cert_ref,
    .cert_free = cert_free,
    .cert_der = cert_der,
    .cert_has_key = cert_has_key,
    .cert_info = cert_info,
    .cert_matches = cert_matches,
    .store_new = store_new,
    .store_ref = store_ref,
    .store_free = store_free,
};
