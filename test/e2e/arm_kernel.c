// Runs one kernel that IREE compiled, without IREE: reads the bindings from standard input, calls every workgroup, and
// writes the last binding to standard output. The structures are the start of those in IREE's executable_library.h.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct {
  uint32_t workgroup_size_x, workgroup_size_y;
  uint16_t workgroup_size_z, constant_count;
  uint32_t workgroup_count_x, workgroup_count_y;
  uint16_t workgroup_count_z;
  uint8_t max_concurrency, binding_count;
  const uint32_t *constants;
  void *const *binding_ptrs;
  const size_t *binding_lengths;
} dispatch_state_t;

typedef struct {
  uint32_t workgroup_id_x, workgroup_id_y;
  uint16_t workgroup_id_z, reserved;
  uint32_t processor_id;
  void *local_memory;
  uint32_t local_memory_size;
} workgroup_state_t;

typedef int (*dispatch_t)(const void *environment, const dispatch_state_t *, const workgroup_state_t *);

typedef struct {
  const void *header;
  uint32_t import_count;
  const char *const *import_symbols;
  uint32_t export_count;
  const dispatch_t *exports;
} library_t;

extern const library_t *iree_hal_executable_library_query(uint32_t max_version, const void *environment);

int main(void) {
  uint32_t head[3];  // workgroups along x and y, bindings
  uint64_t lengths[16];
  void *bindings[16];
  size_t sizes[16];
  if (fread(head, 4, 3, stdin) != 3 || head[2] > 16 || fread(lengths, 8, head[2], stdin) != head[2]) return 2;
  for (uint32_t i = 0; i < head[2]; ++i) {
    sizes[i] = lengths[i];
    bindings[i] = aligned_alloc(64, (lengths[i] + 63) / 64 * 64);
    if (!bindings[i] || fread(bindings[i], 1, lengths[i], stdin) != lengths[i]) return 3;
  }
  uint64_t environment[64] = {0};
  const library_t *library = NULL;  // it answers to the one version of the interface that it has
  for (uint32_t version = 0; !library && version < 256; ++version)
    library = iree_hal_executable_library_query(version, environment);
  if (!library || library->export_count != 1) return 4;
  dispatch_state_t state = {1, 1, 1, 0, head[0], head[1], 1, 1, (uint8_t)head[2], NULL, bindings, sizes};
  for (uint32_t y = 0; y < head[1]; ++y)
    for (uint32_t x = 0; x < head[0]; ++x) {
      workgroup_state_t group = {x, y, 0, 0, 0, NULL, 0};
      if (library->exports[0](environment, &state, &group)) return 5;
    }
  const uint32_t last = head[2] - 1;
  return fwrite(bindings[last], 1, sizes[last], stdout) == sizes[last] ? 0 : 6;
}
