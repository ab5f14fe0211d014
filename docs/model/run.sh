#!/bin/sh
# Runs every model, as the protocol is and with each rule broken, and compares the verdicts with those expected.
#
#   run.sh [-v] [MODEL...]     MODEL: handshake, prove, resume, rekey; all unless named. -v prints what ProVerif says.
#
# Exit: 0 all as expected, or ProVerif is not installed; 1 a verdict differs.
set -u
cd "$(dirname "$0")" || exit 1
proverif=${PROVERIF:-proverif}
command -v "$proverif" > /dev/null || { echo "skipped: proverif is not installed"; exit 0; }
[ "${1-}" = -v ] && { verbose=1; shift; }
only=" $* "
failed=0

# check MODEL VERDICTS [RULE=FILE]: the model under all rules, of which one may be replaced. T is proven, F is refuted,
# and ? is undecided; one letter a query, in the order of the file.
check() {
    model=$1 expected=$2 swap=${3-}
    case $only in "  " | *" $model "*) ;; *) return ;; esac
    libraries="-lib m2m"
    for rule in ee pair_key psk prologue prove resume next_root rekey_frames; do
        file=rules/$rule
        [ "$rule" = "${swap%%=*}" ] && file=${swap#*=}
        libraries="$libraries -lib $file"
    done
    said=$("$proverif" $libraries -lib noise "$model.pv" 2>&1)
    [ -n "${verbose-}" ] && echo "$said"
    found=$(echo "$said" | sed -n -e '/^RESULT (even/d' -e '/^RESULT/!d' \
        -e 's/.* is true\.$/T/p; s/.* is false\.$/F/p; s/.* cannot be proved.*/?/p' | tr -d '\n')
    verdict="as expected"
    [ "$found" = "$expected" ] || { verdict="DIFFERS, expected $expected"; failed=1; }
    printf '%-10s %-36s %-13s %s\n' "$model" "${swap:-as specified}" "$found" "$verdict"
}

check handshake TTTTTTTFFFFF
check handshake FFFFFFFFFFFF psk=broken/no_psk
check handshake TTFFTTTFFFFF prologue=broken/no_prologue
check handshake FFFFFFFFFFFF pair_key=broken/no_ids_in_pair_key
check handshake FFTTTTTFFFFF ee=broken/no_ee
check prove TTTFFF
check prove FFFFFF prove=broken/no_prove
check prove FFFFFF prove=broken/prove_not_bound
check prove TTTFFF prove=broken/prove_without_hash
check resume TTTFFF
check resume FTFFFF resume=broken/resume_bearer
check resume FFFFFF resume=broken/resume_without_tag
check rekey TTTTFFF
check rekey FFTTFFF next_root=broken/no_dh_in_rekey
check rekey FTFTFFF rekey_frames=broken/rekeyed_in_clear
exit $failed
