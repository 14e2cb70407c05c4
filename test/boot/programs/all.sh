# Runs all programs, two at a time, and prints a line for each output: "RESULT NAME SHA256 STATUS".
# sh all.sh FOLDER SEED ROUNDS; FOLDER has this script and its like, program.c and program32.c.
programs=$1
seed=$2
rounds=$3
# Which of libm's variants runs must not depend on the CPU.
export GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2_Usable,-AVX2,-FMA_Usable,-FMA,-FMA4,-AVX512F
export LC_ALL=C PYTHONHASHSEED=0 HOME=/root TZ=UTC
export PATH=/usr/sbin:/usr/bin:/sbin:/bin

run() {
  name=$1
  shift
  mkdir -p "$name"
  (cd "$name" && "$@") >"$name.out" 2>"$name.err"
  status=$?
  echo "RESULT $name $(sha256sum <"$name.out" | cut -c1-64) $status"
  [ $status -eq 0 ] || tail -n 5 "$name.err"
}

# compile SOURCE OPTION
compile() {
  cp "$programs/$1" program.c && gcc "$2" -O2 -S program.c && sha256sum program.s &&
    gcc "$2" program.s -o program -lm && sha256sum program && ./program
}

with_data() {
  perl -e 'my $s = $ARGV[0]; my @w = map { $s = ($s * 1103515245 + 12345) & 0x7fffffff; pack("N", $s) x (1 + ($s >> 9) % 3) . chr(97 + $s % 26) x (($s >> 12) % 9) } 0 .. 999;
    for (1 .. $ARGV[1]) { $s = ($s * 1103515245 + 12345) & 0x7fffffff; print $w[($s >> 10) % 1000] }' "$seed" $((rounds * 100000)) >data
  sha256sum data
  "$@"
}

(
  run compiled compile program.c -m64
  run texts perl "$programs/texts.pl" "$seed" "$rounds"
) &
(
  run figures python3 "$programs/figures.py" "$seed" "$rounds"
  run compiled32 compile program32.c -m32
) &
wait
(run compressed with_data sh "$programs/compressors.sh") &
(run ciphers with_data sh "$programs/ciphers.sh" "$seed") &
wait
