/*
 * Credentials: certificates with keys, and the engine's handles for them,
 * shared by counting. One tw_credentials may hold several identities; a
 * server answers with the first whose certificate names the host that the
 * client asked for (SNI), else with the first. On Schannel the handle is
 * the session cache as well, so it is never shared across identities.
 */
#ifndef TW_CORE_CREDENTIALS_H
#define TW_CORE_CREDENTIALS_H

#include "sspi/provider.h"

struct tw_credentials;

/* Acquires from the engine: on a server one handle for every certificate
   name set (certificates with the same names, RSA and EC, share one). A
   server needs at least one certificate: TW_E_ARGUMENT. NULL with *err on
   failure. */
struct tw_credentials *tw_credentials_new(
    const struct tw_provider *, const struct tw_credentials_config *,
    struct tw_error *err);
struct tw_credentials *tw_credentials_ref(struct tw_credentials *);
void tw_credentials_free(struct tw_credentials *); /* NULL is ignored */

const struct tw_provider *tw_credentials_provider(struct tw_credentials *);
enum tw_role tw_credentials_role(struct tw_credentials *);
/* May sessions of these credentials be resumed? */
bool tw_credentials_resumes(struct tw_credentials *);
/* The parent of windows that ask for a PIN; NULL if there is none. */
void *tw_credentials_window(struct tw_credentials *);
/* The engine's handle for a connection: host as in SNI, NULL if none. */
CredHandle *tw_credentials_handle(struct tw_credentials *, const char *host);

#endif
