/* Stands in for the Crazyflie's firmware where a controller is tried without one: its types by name, with the fields
 * that our controller uses, and its functions. SIL_THRUST_MAX is what a motor of the simulated craft pulls at most, N. */
#ifndef FIRMWARE_H
#define FIRMWARE_H

#include <stdbool.h>
#include <stdint.h>

#define THRUST_MAX SIL_THRUST_MAX
#define RATE_MAIN_LOOP 1000
#define STABILIZER_NR_OF_MOTORS 4
#define M2T(ms) (ms)

typedef uint32_t stabilizerStep_t;
typedef struct { float x, y, z; } Axis3f;
typedef struct { float x, y, z, w; } quaternion_t;
typedef struct { float roll, pitch, yaw; } attitude_t; /* deg */
typedef struct { float x, y, z; } point_t;             /* m, world */
typedef struct { float x, y, z; } velocity_t;          /* m/s, world */

typedef struct { Axis3f gyro; } sensorData_t; /* deg/s, body */

typedef struct {
    attitude_t attitude;
    quaternion_t attitudeQuaternion; /* Body to world. */
    point_t position;
    velocity_t velocity;
} state_t;

typedef enum { modeDisable, modeAbs, modeVelocity } stab_mode_t;
typedef struct { stab_mode_t x, y, z; } setpoint_mode_t;

typedef struct {
    point_t position;
    velocity_t velocity;
    bool velocity_body;
    setpoint_mode_t mode;
} setpoint_t;

typedef enum { controlModeLegacy, controlModeForceTorque, controlModeForce } control_mode_t;

typedef struct {
    float thrust;                                     /* controlModeLegacy: 0 to 65535 for every motor. */
    float normalizedForces[STABILIZER_NR_OF_MOTORS]; /* controlModeForce: 0 to 1. */
    control_mode_t controlMode;
} control_t;

void controllerOutOfTreeInit(void);
bool controllerOutOfTreeTest(void);
void controllerOutOfTree(control_t *control, const setpoint_t *setpoint, const sensorData_t *sensors,
                         const state_t *state, const stabilizerStep_t stabilizerStep);
void controllerPidInit(void);
bool controllerPidTest(void);
void controllerPid(control_t *control, const setpoint_t *setpoint, const sensorData_t *sensors, const state_t *state,
                   const stabilizerStep_t stabilizerStep);
void positionControllerResetAllPID(float x, float y, float z);
void positionControllerResetAllfilters(void);
void attitudeControllerResetAllPID(float roll, float pitch, float yaw);
void appMain(void);
void vTaskDelay(uint32_t ticks);

#define PARAM_GROUP_START(name) const void *const param_##name[] = {
#define PARAM_ADD(type, name, address) address,
#define PARAM_GROUP_STOP(name) 0};
#define LOG_GROUP_START(name) const void *const log_##name[] = {
#define LOG_ADD(type, name, address) address,
#define LOG_GROUP_STOP(name) 0};

#endif
