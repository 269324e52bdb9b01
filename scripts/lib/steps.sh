# Shell functions that run named steps one after the other, each under a headline and timed.
# All steps run, so that one run shows everything; `finish_steps` ends with the exit code of the
# first that failed.

first_failure=0
step_report=()

# step NAME COMMAND [ARGUMENT...]
step() {
    local name=$1 started=$SECONDS status=0 verdict=ok
    shift
    printf '\n==== %s\n' "$name"
    "$@" || status=$?
    if [ "$status" -ne 0 ]; then
        verdict="FAILED ($status)"
        [ "$first_failure" -ne 0 ] || first_failure=$status
    fi
    step_report+=("$(printf '%5d s  %-12s %s' $((SECONDS - started)) "$verdict" "$name")")
    printf '==== %s: %s, %d s\n' "$name" "$verdict" $((SECONDS - started))
    return 0
}

# The same for a step without which the next ones make no sense.
required_step() {
    step "$@"
    [ "$first_failure" -eq 0 ] || finish_steps
}

finish_steps() {
    printf '\n'
    printf '%s\n' "${step_report[@]}"
    exit "$first_failure"
}
