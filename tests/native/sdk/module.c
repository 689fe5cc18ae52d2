/*
 * _testschannel: provider_schannel.c on any system, over the scripted table;
 * win32.h has the theory. The module is the Windows that windows() says, or
 * the newest if it is never called; one copy of the module is one Windows.
 */
#include "ext.h"

#include "win32.h"

const struct ext_engine ext_engine = {&tw_provider_schannel,
                                      tw_sdk_cert_new};

/* windows(build, wine, fips, secur32, sets_attributes): struct tw_windows */
static PyObject *windows(PyObject *module, PyObject *args)
{
    static char wine[32];
    const char *version = NULL;
    unsigned long build;
    int secur32;
    int sets;

    (void)module;
    if (!PyArg_ParseTuple(args, "kzipp:windows", &build, &version,
                          &tw_windows.fips, &secur32, &sets)) {
        return NULL;
    }
    tw_windows.build = (ULONG)build;
    tw_windows.wine = NULL;
    if (version != NULL) {
        (void)PyOS_snprintf(wine, sizeof(wine), "%s", version);
        tw_windows.wine = wine;
    }
    tw_windows.secur32 = secur32 != 0;
    tw_windows.sets_attributes = sets != 0;
    Py_RETURN_NONE;
}

/* engine() -> (name, version, fips, has a function table, caps) */
static PyObject *engine(PyObject *module, PyObject *ignored)
{
    const struct tw_provider *p = tw_provider_default();

    (void)module;
    (void)ignored;
    return Py_BuildValue("(ssiik)", p->name, p->version(), p->fips(),
                         p->table() != NULL, (unsigned long)p->caps);
}

static PyMethodDef functions[] = {
    {"windows", windows, METH_VARARGS, NULL},
    {"engine", engine, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_testschannel",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__testschannel(void)
{
    PyObject *module = ext_module_new(&definition);

    tw_script_contexts(tw_sdk_context_new);
    if (module != NULL
        && (ext_add_floors(module) != 0 || ext_add_alloc(module) != 0
            || ext_add_played(module) != 0)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
