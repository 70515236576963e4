/* Prints the layouts as the compiler sees them: `struct field offset size` a line, and each
 * struct's own size as field `-`. A test in Python compares them with its own. */
#include <stdio.h>

#include "pages_python.h"

#define FIELD(structure, field)                                                   \
    printf(#structure " " #field " %zu %zu\n", offsetof(struct structure, field), \
           sizeof(((struct structure *)0)->field))
#define SIZE(structure) printf(#structure " - 0 %zu\n", sizeof(struct structure))
#define CONSTANT(name)  printf("constant " #name " 0 %llu\n", (unsigned long long)(name))

static void header_and_readings(void) {
    SIZE(mux_page_header);
    FIELD(mux_page_header, magic);
    FIELD(mux_page_header, kind);
    FIELD(mux_page_header, version);
    FIELD(mux_page_header, size_bytes);
    FIELD(mux_page_header, reserved);
    FIELD(mux_page_header, uuid);
    SIZE(mux_device_readings);
    FIELD(mux_device_readings, time_boottime_ns);
    FIELD(mux_device_readings, since_boottime_ns);
    FIELD(mux_device_readings, condition);
    FIELD(mux_device_readings, hard);
    FIELD(mux_device_readings, epoch);
    FIELD(mux_device_readings, sm_activity_permille);
    FIELD(mux_device_readings, utilization_permille);
    FIELD(mux_device_readings, online_activity_permille);
    FIELD(mux_device_readings, offline_busy_permille);
    FIELD(mux_device_readings, sm_clock_mhz);
    FIELD(mux_device_readings, memory_used_bytes);
    FIELD(mux_device_readings, memory_total_bytes);
    FIELD(mux_device_readings, offline_memory_bytes);
    FIELD(mux_device_readings, cause);
}

static void device_and_control(void) {
    SIZE(mux_device_page);
    FIELD(mux_device_page, header);
    FIELD(mux_device_page, gate);
    FIELD(mux_device_page, heartbeat);
    FIELD(mux_device_page, stale_after_ms);
    FIELD(mux_device_page, beacon_holdoff_us);
    FIELD(mux_device_page, sequence);
    FIELD(mux_device_page, readings);
    SIZE(mux_control_page);
    FIELD(mux_control_page, header);
    FIELD(mux_control_page, gate);
    FIELD(mux_control_page, phase);
    FIELD(mux_control_page, deadline_boottime_ns);
    FIELD(mux_control_page, quota_bytes);
    FIELD(mux_control_page, context_bytes);
    FIELD(mux_control_page, attempt);
    SIZE(mux_look);
    FIELD(mux_look, gate);
    FIELD(mux_look, heartbeat);
    FIELD(mux_look, error);
    FIELD(mux_look, fresh);
    FIELD(mux_look, whole);
    FIELD(mux_look, stale_after_ms);
    FIELD(mux_look, uuid);
    FIELD(mux_look, readings);
}

static void job_and_beacon(void) {
    SIZE(mux_process_slot);
    FIELD(mux_process_slot, owner);
    FIELD(mux_process_slot, launches);
    FIELD(mux_process_slot, busy_ns);
    FIELD(mux_process_slot, throttled_ns);
    FIELD(mux_process_slot, frozen_ns);
    FIELD(mux_process_slot, memory_bytes);
    FIELD(mux_process_slot, refused_bytes);
    FIELD(mux_process_slot, inflight_ns);
    FIELD(mux_process_slot, inflight);
    FIELD(mux_process_slot, drained);
    FIELD(mux_process_slot, gate_epoch);
    FIELD(mux_process_slot, inflation_permille);
    FIELD(mux_process_slot, last_error);
    FIELD(mux_process_slot, last_error_call);
    FIELD(mux_process_slot, last_error_boottime_ns);
    FIELD(mux_process_slot, updated_boottime_ns);
    FIELD(mux_process_slot, reserved);
    SIZE(mux_job_page);
    FIELD(mux_job_page, header);
    FIELD(mux_job_page, slots);
    SIZE(mux_beacon_slot);
    FIELD(mux_beacon_slot, owner);
    FIELD(mux_beacon_slot, complete);
    FIELD(mux_beacon_slot, launches);
    FIELD(mux_beacon_slot, reserved);
    SIZE(mux_beacon_page);
    FIELD(mux_beacon_page, header);
    FIELD(mux_beacon_page, slot);
}

int main(void) {
    header_and_readings();
    device_and_control();
    job_and_beacon();
    CONSTANT(MUX_PAGE_MAGIC);
    CONSTANT(MUX_PAGE_VERSION);
    CONSTANT(MUX_PAGE_DEVICE);
    CONSTANT(MUX_PAGE_CONTROL);
    CONSTANT(MUX_PAGE_JOB);
    CONSTANT(MUX_PAGE_BEACON);
    CONSTANT(MUX_DEVICE_PAGE_BYTES);
    CONSTANT(MUX_CONTROL_PAGE_BYTES);
    CONSTANT(MUX_JOB_PAGE_BYTES);
    CONSTANT(MUX_BEACON_PAGE_BYTES);
    CONSTANT(MUX_JOB_SLOTS);
    CONSTANT(MUX_BEACON_NAME_DIGITS);
    CONSTANT(MUX_BEACON_PROCESSES);
    return 0;
}
