/*
 * Runs files (a corpus, a crash) through a fuzz target without libFuzzer:
 * what `make test` does, where no clang is needed.
 */
#include "fuzz.h"

int main(int argc, char **argv)
{
    static uint8_t data[1 << 20];
    int i;

    for (i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        size_t len;

        if (file == NULL) {
            perror(argv[i]);
            return 1;
        }
        len = fread(data, 1, sizeof(data), file);
        (void)fclose(file);
        (void)LLVMFuzzerTestOneInput(data, len);
    }
    (void)printf("%d inputs\n", argc - 1);
    return 0;
}
