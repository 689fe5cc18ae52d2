/*
 * A Turn from C: the lock of a channel's writers.
 */
#ifndef TW_PYTHON_PY_TURN_H
#define TW_PYTHON_PY_TURN_H

#include "python/module.h"

/* Takes it, waiting without the GIL up to a deadline of tw_clock_ns: 1;
   0 if the time was over; -1 with what a signal's handler raised. */
int tw_turn_take(PyObject *turn, int64_t deadline);
/* Once for each time that this thread took it. Touches no exception. */
void tw_turn_give(PyObject *turn);
bool tw_turn_check(struct tw_module *, PyObject *thing);

#endif
