/* What the files of an extension for tests share. */
#include "ext.h"

PyObject *ext_module_new(struct PyModuleDef *definition)
{
    PyObject *module = PyModule_Create(definition);

#ifdef Py_GIL_DISABLED
    if (module != NULL
        && PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED) != 0) {
        Py_CLEAR(module);
    }
#endif
    return module;
}

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
