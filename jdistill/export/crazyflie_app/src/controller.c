/* A policy as the Crazyflie's out-of-tree controller.
 *
 * A hundred times a second (POLICY_RATE_HZ) the policy turns the estimated state and the position setpoint into motor
 * thrusts; in between they are held. Where it cannot be trusted the stock PID controller flies: see enum fallback.
 */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "app.h"
#include "FreeRTOS.h"
#include "task.h"
#include "controller.h"
#include "controller_pid.h"
#include "attitude_controller.h"
#include "position_controller.h"
#include "platform_defaults.h"
#include "log.h"
#include "param.h"

#include "policy.h"
#include "policy_task.h"

#ifndef THRUST_MAX
#error "the thrust of a motor is unknown: set CONFIG_ENABLE_THRUST_BAT_COMPENSATED=y and the propellers in app-config"
#endif

#define DIVIDER (RATE_MAIN_LOOP / (int)POLICY_RATE_HZ)
#define RADIANS 0.017453292f
/* Of 65535: below THRUST_MIN the firmware stops a motor, and it rounds towards zero. */
#define ROUNDING (1.5f / 65535.0f)

enum fallback {
    FLYING = 0,          /* The policy flies. */
    NO_POSITION = 1,     /* The setpoint is no position in the world. */
    NOT_FINITE = 2,      /* The estimate or the setpoint holds a NaN or an infinity. */
    TOO_OLD = 3,         /* The estimate has not changed for LIMIT_STILL_STEPS steps. */
    TOO_FAR = 4,         /* The setpoint is farther away than maxDistance. */
    TOO_TILTED = 5,      /* The craft is tilted more than maxTilt. */
    TOO_FAST = 6,        /* It is faster than maxSpeed or turns faster than maxRate. */
    BAD_ACTION = 7,      /* The policy gave a NaN or an infinity. */
    SWITCHED_OFF = 8,    /* The parameter policy.enable is zero. */
    RECOVERING = 9       /* All is well again, but not yet for LIMIT_RECOVERY_STEPS steps. */
};

static struct {
    policy_state memory;
    state_t last;            /* The last finite estimate, which the PID gets in place of one that is not. */
    Axis3f last_gyro;
    float command[4];        /* 0 to 1, from the slowest to the fastest rotor speed. */
    float share[4];          /* Of THRUST_MAX. */
    float cos_start, sin_start;
    uint16_t still, wait;
    uint8_t fallback;
} app;

static uint8_t enable = 1;
static float max_distance = LIMIT_DISTANCE, max_tilt = LIMIT_TILT, max_speed = LIMIT_SPEED, max_rate = LIMIT_RATE;

static bool are_finite(const float *x, int n)
{
    for (int i = 0; i < n; i++) {
        if (!isfinite(x[i])) {
            return false;
        }
    }
    return true;
}

static bool is_finite3(float x, float y, float z)
{
    return isfinite(x) && isfinite(y) && isfinite(z);
}

/* Body to world. The estimator's quaternion knows nothing of the inverted pitch of state->attitude. */
static void rotation_of(const quaternion_t *q, float r[3][3])
{
    const float n = 2.0f / (q->x * q->x + q->y * q->y + q->z * q->z + q->w * q->w);
    const float xx = n * q->x * q->x, yy = n * q->y * q->y, zz = n * q->z * q->z;
    const float xy = n * q->x * q->y, xz = n * q->x * q->z, yz = n * q->y * q->z;
    const float wx = n * q->w * q->x, wy = n * q->w * q->y, wz = n * q->w * q->z;
    r[0][0] = 1.0f - yy - zz;
    r[0][1] = xy - wz;
    r[0][2] = xz + wy;
    r[1][0] = xy + wz;
    r[1][1] = 1.0f - xx - zz;
    r[1][2] = yz - wx;
    r[2][0] = xz - wy;
    r[2][1] = yz + wx;
    r[2][2] = 1.0f - xx - yy;
}

static bool is_position(const setpoint_t *s)
{
    return s->mode.x == modeAbs && s->mode.y == modeAbs && s->mode.z == modeAbs && !s->velocity_body;
}

static bool is_finite_estimate(const state_t *s, const Axis3f *gyro)
{
    const quaternion_t *q = &s->attitudeQuaternion;
    const float length = q->x * q->x + q->y * q->y + q->z * q->z + q->w * q->w;
    return is_finite3(s->position.x, s->position.y, s->position.z) && is_finite3(s->velocity.x, s->velocity.y, s->velocity.z)
           && isfinite(length) && length > 0.5f && is_finite3(gyro->x, gyro->y, gyro->z);
}

static bool is_same_estimate(const state_t *s)
{
    const state_t *last = &app.last;
    return s->position.x == last->position.x && s->position.y == last->position.y && s->position.z == last->position.z
           && s->velocity.x == last->velocity.x && s->velocity.y == last->velocity.y && s->velocity.z == last->velocity.z
           && s->attitudeQuaternion.x == last->attitudeQuaternion.x && s->attitudeQuaternion.y == last->attitudeQuaternion.y
           && s->attitudeQuaternion.z == last->attitudeQuaternion.z && s->attitudeQuaternion.w == last->attitudeQuaternion.w;
}

static float length3(const float v[3])
{
    return sqrtf(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
}

/* Why the policy may not fly now. */
static uint8_t judge(const setpoint_t *setpoint, const Axis3f *gyro, const state_t *state)
{
    const point_t *p = &setpoint->position;
    const velocity_t *v = &setpoint->velocity;
    float r[3][3];
    if (!is_finite_estimate(state, gyro)) {
        return NOT_FINITE;
    }
    app.still = is_same_estimate(state) ? (uint16_t)(app.still < UINT16_MAX ? app.still + 1 : app.still) : 0;
    app.last = *state;
    app.last_gyro = *gyro;
    if (!enable) {
        return SWITCHED_OFF;
    }
    if (!is_position(setpoint)) {
        return NO_POSITION;
    }
    if (!is_finite3(p->x, p->y, p->z) || !is_finite3(v->x, v->y, v->z)) {
        return NOT_FINITE;
    }
    if (app.still >= LIMIT_STILL_STEPS) {
        return TOO_OLD;
    }
    const float away[3] = {state->position.x - p->x, state->position.y - p->y, state->position.z - p->z};
    if (length3(away) > max_distance) {
        return TOO_FAR;
    }
    rotation_of(&state->attitudeQuaternion, r);
    if (r[2][2] < cosf(max_tilt * RADIANS)) {
        return TOO_TILTED;
    }
    const float speed[3] = {state->velocity.x, state->velocity.y, state->velocity.z};
    const float rate[3] = {gyro->x * RADIANS, gyro->y * RADIANS, gyro->z * RADIANS};
    return length3(speed) > max_speed || length3(rate) > max_rate ? TOO_FAST : FLYING;
}

/* An episode of the policy begins: it knows nothing, and the motors have just carried the craft. */
static void engage(const state_t *state)
{
    float r[3][3];
    rotation_of(&state->attitudeQuaternion, r);
    const float length = sqrtf(r[0][0] * r[0][0] + r[1][0] * r[1][0]);
    app.cos_start = length > 0.0f ? r[0][0] / length : 1.0f;
    app.sin_start = length > 0.0f ? r[1][0] / length : 0.0f;
    policy_reset(&app.memory);
    for (int i = 0; i < 4; i++) {
        app.command[i] = HOVER_COMMAND;
    }
}

/* World vectors in the frame of the policy's errors. */
static void to_frame(float r[3][3], const float v[3], float out[3])
{
    switch (FRAME) {
    case FRAME_BODY:
        for (int i = 0; i < 3; i++) {
            out[i] = r[0][i] * v[0] + r[1][i] * v[1] + r[2][i] * v[2];
        }
        break;
    case FRAME_START:
        out[0] = app.cos_start * v[0] + app.sin_start * v[1];
        out[1] = app.cos_start * v[1] - app.sin_start * v[0];
        out[2] = v[2];
        break;
    default:
        memcpy(out, v, 3 * sizeof *v);
        break;
    }
}

/* All that can be observed, in the task's order: position and velocity error, rotation, body rates, commands. */
static void observe(const setpoint_t *setpoint, const Axis3f *gyro, const state_t *state, float obs[POLICY_OBS_SIZE])
{
    static const uint8_t order[POLICY_OBS_SIZE] = OBSERVATION_ORDER;
    const float position[3] = {state->position.x - setpoint->position.x, state->position.y - setpoint->position.y,
                               state->position.z - setpoint->position.z};
    const float velocity[3] = {state->velocity.x - setpoint->velocity.x, state->velocity.y - setpoint->velocity.y,
                               state->velocity.z - setpoint->velocity.z};
    float r[3][3], seen[22];
    rotation_of(&state->attitudeQuaternion, r);
    to_frame(r, position, seen);
    to_frame(r, velocity, seen + 3);
    for (int i = 0; i < 3; i++) {
        seen[6 + i] = r[0][i];
        seen[9 + i] = r[1][i];
        seen[12 + i] = r[2][i];
        if (FRAME == FRAME_START) {
            seen[6 + i] = app.cos_start * r[0][i] + app.sin_start * r[1][i];
            seen[9 + i] = app.cos_start * r[1][i] - app.sin_start * r[0][i];
        }
    }
    seen[15] = gyro->x * RADIANS;
    seen[16] = gyro->y * RADIANS;
    seen[17] = gyro->z * RADIANS;
    memcpy(seen + 18, app.command, sizeof app.command);
    for (int i = 0; i < POLICY_OBS_SIZE; i++) {
        obs[i] = seen[order[i]];
    }
}

static float limited(float x, float low, float high)
{
    return x < low ? low : x > high ? high : x;
}

/* The policy's step: false where its action is not finite. M1 to M4 are the task's motors, in its order. */
static bool fly(const setpoint_t *setpoint, const Axis3f *gyro, const state_t *state)
{
    float obs[POLICY_OBS_SIZE], action[POLICY_NUM_ACTIONS];
    observe(setpoint, gyro, state, obs);
    policy_step(&app.memory, obs, action);
    if (!are_finite(action, POLICY_NUM_ACTIONS)) {
        return false;
    }
    for (int i = 0; i < 4; i++) {
        const float command = 0.5f * (limited(action[i], -1.0f, 1.0f) + 1.0f);
        const float rpm = RPM_MIN + command * (RPM_MAX - RPM_MIN);
        const float thrust = THRUST_0 + rpm * (THRUST_1 + rpm * THRUST_2);
        app.command[i] = command;
        app.share[i] = limited(thrust / THRUST_MAX, MOTOR_THRUST_MIN / THRUST_MAX + ROUNDING, 1.0f);
    }
    return true;
}

/* Whether the policy flies from now on; the PID begins anew where it takes over. */
static void decide(const setpoint_t *setpoint, const Axis3f *gyro, const state_t *state)
{
    const uint8_t before = app.fallback;
    uint8_t now = judge(setpoint, gyro, state);
    if (now >= NOT_FINITE && now <= BAD_ACTION) {
        app.wait = LIMIT_RECOVERY_STEPS;
    } else if (now == FLYING && app.wait > 0) {
        app.wait--;
        now = RECOVERING;
    }
    if (now == FLYING) {
        if (before != FLYING) {
            engage(state);
        }
        if (!fly(setpoint, gyro, state)) {
            now = BAD_ACTION;
            app.wait = LIMIT_RECOVERY_STEPS;
        }
    }
    if (now != FLYING && before == FLYING) {
        const state_t *last = &app.last;
        positionControllerResetAllPID(last->position.x, last->position.y, last->position.z);
        positionControllerResetAllfilters();
        attitudeControllerResetAllPID(last->attitude.roll, last->attitude.pitch, last->attitude.yaw);
    }
    app.fallback = now;
}

void controllerOutOfTreeInit(void)
{
    memset(&app, 0, sizeof app);
    app.last.attitudeQuaternion.w = 1.0f;
    app.fallback = NO_POSITION;
    controllerPidInit();
}

bool controllerOutOfTreeTest(void)
{
    return controllerPidTest();
}

void controllerOutOfTree(control_t *control, const setpoint_t *setpoint, const sensorData_t *sensors,
                         const state_t *state, const stabilizerStep_t stabilizerStep)
{
    if (stabilizerStep % DIVIDER == 0) {
        decide(setpoint, &sensors->gyro, state);
    }
    if (app.fallback == FLYING) {
        control->controlMode = controlModeForce;
        memcpy(control->normalizedForces, app.share, sizeof app.share);
    } else if (is_finite_estimate(state, &sensors->gyro)) {
        controllerPid(control, setpoint, sensors, state, stabilizerStep);
    } else {
        sensorData_t last_sensors = *sensors;
        last_sensors.gyro = app.last_gyro;
        controllerPid(control, setpoint, &last_sensors, &app.last, stabilizerStep);
    }
}

/* The firmware's app layer wants a task; there is nothing for it to do. */
void appMain(void)
{
    while (1) {
        vTaskDelay(M2T(2000));
    }
}

PARAM_GROUP_START(policy)
PARAM_ADD(PARAM_UINT8, enable, &enable)
PARAM_ADD(PARAM_FLOAT, maxDistance, &max_distance)
PARAM_ADD(PARAM_FLOAT, maxTilt, &max_tilt)
PARAM_ADD(PARAM_FLOAT, maxSpeed, &max_speed)
PARAM_ADD(PARAM_FLOAT, maxRate, &max_rate)
PARAM_GROUP_STOP(policy)

LOG_GROUP_START(policy)
LOG_ADD(LOG_UINT8, fallback, &app.fallback)
LOG_ADD(LOG_FLOAT, m1, &app.share[0])
LOG_ADD(LOG_FLOAT, m2, &app.share[1])
LOG_ADD(LOG_FLOAT, m3, &app.share[2])
LOG_ADD(LOG_FLOAT, m4, &app.share[3])
LOG_GROUP_STOP(policy)
