# Round trips of the file data: sh compressors.sh
set -eu
try() {
  name=$1; pack=$2; unpack=$3
  $pack <data >"$name.packed"
  sha256sum "$name.packed"
  $unpack <"$name.packed" | cmp - data
  rm "$name.packed"
}
try gzip-1 'gzip -1n' 'gzip -d'
try gzip-9 'gzip -9n' 'gzip -d'
try bzip2 bzip2 'bzip2 -d'
try bzip2-1 'bzip2 -1' 'bzip2 -d'
try xz-1 'xz -1' 'xz -d'
try xz-x86 'xz -2 --x86 --lzma2=preset=1,lc=2,pb=1' 'xz -d'
try xz-T2 'xz -1 -T2 --block-size=1MiB' 'xz -d -T2'
try zstd-1 'zstd -q -1' 'zstd -q -d'
try zstd-12 'zstd -q -12 --no-progress' 'zstd -q -d'
try zstd-T2 'zstd -q -3 -T2' 'zstd -q -d'
sort data -S 4M | sha256sum
tr a-z b-za <data | cksum
od -An -tx4 <data | sha256sum
