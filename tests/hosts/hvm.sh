# An HVM guest on a real host with the stub domain as its xenstore: hvmloader, SeaBIOS, QEMU as device model in dom0, Linux.
# debian-host: --enabled --timeout 5400
. /host/lib.sh

stub_domain "first boot"
# Enabled where systemd did not run.
check "the guard has come up" guard_runs
if up seabios 900; then
    pass "seabios: Linux comes up"
    check "seabios: xl shutdown" timeout 300 xl shutdown -F -w seabios
else
    fail "seabios: Linux does not come up"
    check "seabios: xl destroy" timeout 120 xl destroy seabios
fi
gone seabios
stub_domain "afterwards"
sound "afterwards"
finish
