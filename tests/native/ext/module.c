/* _testnative: the module itself. */
#include "ext.h"

PyTypeObject *ext_add_type(PyObject *module, PyType_Spec *spec,
                           const char *name)
{
    PyObject *type = PyType_FromSpec(spec);

    if (type == NULL || PyModule_AddObjectRef(module, name, type) != 0) {
        Py_XDECREF(type);
        return NULL;
    }
    return (PyTypeObject *)type; /* kept for the life of the process */
}

PyObject *ext_bytes(const void *data, size_t len)
{
    if (data == NULL) {
        Py_RETURN_NONE;
    }
    return PyBytes_FromStringAndSize(data, (Py_ssize_t)len);
}

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_testnative",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__testnative(void)
{
    PyObject *module = PyModule_Create(&definition);

    if (module != NULL
        && (ext_add_floors(module) != 0 || ext_add_alloc(module) != 0
            || ext_add_raw(module) != 0 || ext_add_played(module) != 0)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
