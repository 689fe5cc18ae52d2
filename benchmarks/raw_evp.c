/*
 * What EVP alone gives: records sealed or opened in place, each with its
 * nonce and its header as additional data, as TLS 1.3 does it.
 *
 *     raw_evp seal|open AES-128-GCM SECONDS SIZE
 *
 * with SIZE bytes of data in a record, at most 16384, prints bytes per
 * second of CPU time.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <openssl/evp.h>

#define RECORD 16384

static double cpu(void)
{
    struct timespec now;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
    static unsigned char key[32], iv[12], header[5], data[RECORD + 1];
    unsigned char tag[16];
    EVP_CIPHER *cipher;
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    double began, seconds, now, bytes = 0;
    int seal, n, size, good;

    if (argc != 5 || !ctx
        || !(cipher = EVP_CIPHER_fetch(NULL, argv[2], NULL))) {
        fprintf(stderr, "usage: raw_evp seal|open CIPHER SECONDS SIZE\n");
        return 2;
    }
    seal = strcmp(argv[1], "seal") == 0;
    seconds = atof(argv[3]);
    size = atoi(argv[4]);
    good = size > 0 && size <= RECORD
           && EVP_CipherInit_ex(ctx, cipher, NULL, key, iv, seal) == 1;
    began = cpu();
    do {
        for (int i = 0; i < 64 && good; i++) {
            iv[11]++;
            good = EVP_CipherInit_ex(ctx, NULL, NULL, NULL, iv, seal) == 1;
            if (!seal) { /* any tag: it is compared all the same */
                good = good
                       && EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG,
                                              16, tag) == 1;
            }
            good = good && EVP_CipherUpdate(ctx, NULL, &n, header, 5) == 1
                   && EVP_CipherUpdate(ctx, data, &n, data, size + 1) == 1;
            if (seal) {
                good = good && EVP_CipherFinal_ex(ctx, data, &n) == 1
                       && EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG,
                                              16, tag) == 1;
            } else {
                (void)EVP_CipherFinal_ex(ctx, data, &n);
            }
            bytes += size;
        }
        now = cpu();
    } while (now - began < seconds && good);
    printf("%.0f\n", bytes / (now - began));
    EVP_CIPHER_free(cipher);
    EVP_CIPHER_CTX_free(ctx);
    return good ? 0 : 1;
}
