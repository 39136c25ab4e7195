# The smallest domain, of the README of src/xen-kernel-rt, boots, has a console and a clock, and ends.
# nested-xen: --memory 8 --timeout 300
. /lib/nested.sh

[ -e /guest/smallest ] || {
    fail "there is no example: cargo smallest"
    finish
}
log=$logs/guest-smallest.log
make_guest smallest 8 "kernel='/guest/smallest'" "ramdisk=''" "cmdline='hello'"
check "xl starts it" xl create -q /run/guests/smallest.cfg
check "it says who it is" wait_for 30 grep -q "a domain of Xen [0-9.]*.* was told: hello" $log
check "a second passes by its clock" wait_for 30 grep -q "a second is over" $log
check "it is gone" wait_gone smallest
finish
