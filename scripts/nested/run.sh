# Runs an emulated machine and follows what its dom0 reports, for scripts/nested-xen and scripts/debian-host, which source this
# after setup.sh. They set: run (the folder of this run), script, timeout, deterministic, verbose, console_log; and start
# QEMU as $qemu, with $run/reports for what comes from dom0, $run/console for the console of Xen and dom0's kernel, and
# descriptor 4 for what goes to dom0.

# KVM helps only if it can itself run guests with nested virtualization, which Xen needs for its guests.
kvm_works() {
    [ -r /dev/kvm ] && [ -w /dev/kvm ] && grep -Eqw 'svm|vmx' /proc/cpuinfo &&
        grep -Eqs '^(1|Y)' /sys/module/kvm_{intel,amd}/parameters/nested
}

# What a process on this machine has to wait for a step in dom0, in seconds.
choose_machine() {
    patience=180
    # With several emulated processors a wake-up takes tens of milliseconds, and guests that Xen moves from one
    # to another now and then die of triple faults; with one, neither.
    processors=1
    if [ -n "$deterministic" ]; then
        # The machine on which all published figures were taken.
        processors=2
        machine=(-accel tcg -icount "shift=0,sleep=off" -cpu "qemu64,+svm,+npt")
    elif kvm_works; then
        machine=(-accel kvm -cpu host)
    else
        # Not -cpu max: the PV kernel of dom0 does not survive it. +npt: stub domains need HAP.
        machine=(-accel tcg -cpu "qemu64,+svm,+npt")
    fi
}

# Set by the first thing that ends the run; the rest of the output is still read.
verdict='' code='' rebooting=''

end_run() {
    [ -n "$verdict" ] && return
    code=$1
    verdict=$2
}

# handle_report WORD TEXT: one line from dom0-init.
handle_report() {
    case $1 in
    step) say "$2" ;;
    reboot) say "reboot" && rebooting=yes ;;
    out) printf '%s\n' "$2" ;;
    console)
        printf 'xenstore| %s\n' "$2" >&2
        [ -n "${crashes-}" ] || [[ ! $2 =~ ^(fatal|panic) ]] || crash=${crash:-$2} crash_seen=${crash_seen:-$SECONDS}
        ;;
    failed) end_run "${2%% *}" "set-up in dom0 failed: ${2#* }" ;;
    status) end_run "$2" finished ;;
    explain) printf 'dom0| %s\n' "$2" >&2 && why=${why:-$2} ;;
    explained) deadline=0 ;;
    *) printf 'dom0| %s %s\n' "$1" "$2" >&2 ;;
    esac
}

# A crash is what Xen or dom0's kernel announces on their console, or the stub domain (always domain 1) on its
# own. The lines after the first one should be seen, too. Where $crashes says so the stub domain may.
look_for_crash() {
    local pattern='Panic on CPU|Kernel panic|ALERT! .* does not exist'
    [ -n "${crashes-}" ] || pattern="$pattern|\(d1\) (panic|fatal)|d1v0 Triple fault|Domain 1 .*crashed|domain_crash called.*d1"
    [ -n "$crash" ] || crash=$(grep -a -m 1 -E "$pattern" "$run/console" | tr -d '\r') || return 0
    crash_seen=${crash_seen:-$SECONDS}
    [ $((SECONDS - crash_seen)) -lt "$1" ] || end_run 126 "crashed: $crash"
}

# Milliseconds that the emulated processor's thread, the busiest of QEMU, was ready to run and had none, so far.
waited_for_processor() {
    { cat "/proc/$qemu/task/"*/schedstat 2>/dev/null || true; } |
        awk '$1 + $2 > most { most = $1 + $2; waited = $2 } END { printf "%d", waited / 1000000 }'
}

# Limits are for what hangs, not for a slow machine. All limits are stretched by the pace, in tenths: how much longer than on
# an idle machine of 2026 things take just now. dom0 is told.
idle_boot=9
set_pace() {
    [ -z "$deterministic" ] && [ $SECONDS -ge $((pace_seen + 5)) ] || return 0
    local waited span now
    waited=$(waited_for_processor)
    span=$(((SECONDS - pace_seen) * 1000))
    now=$((waited - waited_before))
    # At most ten times; it rises at once, and falls slowly.
    now=$((now * 10 >= span * 9 ? 100 : 10 * span / (span - now)))
    now=$((now * slow / 10))
    pace=$((now > pace * 9 / 10 ? now : pace * 9 / 10))
    lost=$((lost + (pace - 10) * (SECONDS - pace_seen) * 1000 / pace))
    pace_seen=$SECONDS waited_before=$waited
    # Before it listens, its terminal would say it back.
    [ -z "$heard" ] || echo "pace $pace" >&4
}

# From power-on to the first word of dom0, without what others took.
set_slowness() {
    [ -z "$slow" ] || return 0
    local took=$(((SECONDS - began) * 1000 - $(waited_for_processor)))
    slow=$((took / idle_boot / 100))
    [ $slow -ge 10 ] || slow=10
    say "dom0 came up in $((took / 1000)) s of a processor's own time, after $((SECONDS - began)) s"
}

# Seconds since DATE, as an idle machine would have counted them.
since() { echo $((SECONDS - $1 - lost / 1000)); }

# Time is up: dom0 gets a moment to say what hangs, then that is the verdict.
time_is_up() {
    if [ "$verdict" = finished ]; then
        late=yes
    elif [ -z "$late" ]; then
        late=yes
        echo explain >&4
        deadline=$(($(since $began) + 30))
    else
        end_run 124 "not finished after $timeout s (in fact $((SECONDS - began)), at a pace of $pace tenths); ${why:-dom0 does not answer}"
    fi
}

# Now and then the emulated machine loses a timer interrupt, and all of it sleeps until another one comes: it is pending
# in the local APIC, but the processor stays halted. So when dom0 has been silent for a second, a byte on its serial
# port wakes it up; dom0-init leaves empty lines alone.
nudge() {
    [ -z "$heard" ] || [ -n "$deterministic" ] || echo >&4
}

# Where another machine takes over when QEMU has ended: starts it, and is true.
next_machine() { false; }

# Reads reports until QEMU ends or the run is decided; after the script's end dom0 gets a moment to power off.
watch_run() {
    local line='' part began=$SECONDS deadline=$timeout status late='' why='' heard=''
    local slow='' pace=10 pace_seen=$SECONDS waited_before=0 lost=0
    crash='' crash_seen=''
    exec 3<"$run/reports"
    until [ -n "$verdict" ] && { [ "$verdict" != finished ] || [ -n "$late" ]; }; do
        status=0
        IFS= read -r -t 1 part <&3 || status=$?
        line+=$part
        if [ $status = 0 ]; then
            handle_report "${line%% *}" "${line#* }"
            line='' heard=yes
            # From here on its terminal says back what is written to it, until it listens again.
            [ -z "$rebooting" ] || heard=''
            set_slowness
            set_pace
            [ "$verdict" != finished ] || deadline=$(($(since $began) + 5))
        elif [ $status -gt 128 ]; then
            nudge
            [ -z "$slow" ] || set_pace
            look_for_crash 5
            [ "$(since $began)" -lt "$deadline" ] || time_is_up
        elif ! next_machine; then
            break # QEMU has ended
        fi
    done
    kill "$qemu" 2>/dev/null || true
    wait "$qemu" 2>/dev/null && status=0 || status=$?
    look_for_crash 0
    end_run 126 "QEMU ended (status $status) before the script did: $(tail -n 1 "$run/qemu.log")"
}

show_hypervisor_lines() {
    grep -a -E '\(d[0-9]+\)' "$run/console" | tr -d '\r' | tail -n 60 | sed 's/^/hypervisor| /' >&2 || true
}

finish() {
    show_hypervisor_lines
    [ -z "$console_log" ] || cp "$run/console" "$console_log"
    if [ "$verdict" = finished ]; then
        rm -rf "$run"
        [ "$code" -le 123 ] || code=123
        exit "$code"
    fi
    rm -rf "$run"/{root,initramfs,reports,requests}
    say "the last lines of the console of Xen and dom0:"
    tail -n 12 "$run/console" | tr -d '\r' >&2
    printf 'error: %s: %s (logs: %s)\n' "$(basename "$script")" "$verdict" "$run" >&2
    exit "$code"
}

stop_qemu() {
    [ -z "${qemu-}" ] || kill "$qemu" 2>/dev/null || true
}
