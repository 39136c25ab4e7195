# Bad input at the start: each mistake is named on the console, and whatever can go on does.
# nested-xen: --memory 8 --timeout 300 --param "--no-such-option --quota nodes=many stray"
. /lib/nested.sh

ours "a damaged command line is reported" || finish

step "a damaged command line"
check "the server runs all the same" xenstore-write /test 1
for word in --no-such-option --quota stray; do
    check "the console names $word" wait_for 20 grep -q -e "$word" $logs/guest-Xenstore.log
done

step "no dom0 port"
# Started like any guest, the image gets no --event and is not the xenstore domain.
make_guest portless 8 "kernel='/nested/image'" "ramdisk=''" "cmdline=''"
timeout 60 xl create -q /run/guests/portless.cfg
wait_for 30 eval 'guest_log portless | grep -qi event'
guest_log portless | sed 's/^/        /'
check "the console of the second one names --event" wait_for 20 grep -qi -e event $logs/guest-portless.log
check "the first one goes on" xenstore-read /test
xl destroy portless 2>/dev/null
finish
