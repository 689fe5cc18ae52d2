/* Schannel's records are its own: there is nothing to show. */
#include "ext.h"

int ext_add_records(PyObject *module)
{
    (void)module;
    return 0;
}
