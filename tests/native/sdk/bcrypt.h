/* In the SDK's place: see win32.h. */
#include "win32.h"
