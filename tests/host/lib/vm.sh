# shellcheck shell=bash
make_vm_tree() { return 1; }
