/* _testnative: the module itself. */
#include "ext.h"

#include "sspi/scripted.h"

const struct ext_engine ext_engine = {&tw_provider_scripted,
                                      tw_script_cert_new};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_testnative",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__testnative(void)
{
    PyObject *module = ext_module_new(&definition);

    if (module != NULL
        && (ext_add_floors(module) != 0 || ext_add_alloc(module) != 0
            || ext_add_raw(module) != 0 || ext_add_records(module) != 0
            || ext_add_played(module) != 0)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
