# Shell functions that run named steps one after the other, each under a headline and timed.
# All steps run, so that one run shows everything; `finish_steps` ends with the exit code of the
# first that failed. One step may run beside the others: its output is kept and shown when it is
# joined, so that two outputs are never mixed.

first_failure=0
step_report=()
beside_name="" beside_pid="" beside_output="" beside_started=0

# step NAME COMMAND [ARGUMENT...]
step() {
    local name=$1 started=$SECONDS status=0
    shift
    printf '\n==== %s\n' "$name"
    "$@" || status=$?
    _note_step "$name" "$status" $((SECONDS - started))
    return 0
}

_note_step() {
    local name=$1 status=$2 seconds=$3 verdict=ok
    if [ "$status" -ne 0 ]; then
        verdict="FAILED ($status)"
        [ "$first_failure" -ne 0 ] || first_failure=$status
    fi
    step_report+=("$(printf '%5d s  %-12s %s' "$seconds" "$verdict" "$name")")
    printf '==== %s: %s, %d s\n' "$name" "$verdict" "$seconds"
}

# The same for a step without which the next ones make no sense.
required_step() {
    step "$@"
    [ "$first_failure" -eq 0 ] || finish_steps
}

# beside NAME COMMAND [ARGUMENT...]: start a step and go on; `join_beside` waits for it and shows
# what it printed. It ends with the script, in whatever way that ends.
beside() {
    beside_name=$1 beside_started=$SECONDS
    shift
    beside_output=$(mktemp)
    trap _end_beside EXIT
    set -m # a process group of its own, so that all of it can be ended
    { "$@"; local status=$?; echo $((SECONDS - beside_started)) >&3; exit "$status"; } \
        >"$beside_output" 2>&1 3>"$beside_output.seconds" </dev/null &
    beside_pid=$!
    set +m
}

join_beside() {
    local status=0
    wait "$beside_pid" || status=$?
    beside_pid=""
    printf '\n==== %s\n' "$beside_name"
    cat "$beside_output"
    _note_step "$beside_name" "$status" "$(cat "$beside_output.seconds")"
}

_end_beside() {
    [ -z "$beside_pid" ] || kill -- "-$beside_pid" 2>/dev/null
    rm -f "$beside_output" "$beside_output.seconds"
}

finish_steps() {
    printf '\n'
    printf '%s\n' "${step_report[@]}"
    exit "$first_failure"
}
