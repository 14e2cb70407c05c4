# Digests, ciphers and signatures of openssl: sh ciphers.sh SEED MEGABYTES, with the file data in this folder.
set -eu
for digest in md5 sha1 sha256 sha512 sha3-256 blake2b512 blake2s256 sm3 ripemd160; do
  openssl dgst -provider default -provider legacy -$digest data
done
# FIPS 180-4, RFC 1321.
printf abc | openssl dgst -sha256 | grep -q ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad
printf abc | openssl dgst -md5 | grep -q 900150983cd24fb0d6963f7d28e17f72
# FIPS 197, C.1 and C.3; RFC 8439, A.1.
perl -e 'print pack "H*", "00112233445566778899aabbccddeeff"' >block
test "$(openssl enc -aes-128-ecb -nopad -K 000102030405060708090a0b0c0d0e0f -in block | od -An -tx1 | tr -d ' \n')" = 69c4e0d86a7b0430d8cdb78070b4c55a
test "$(openssl enc -aes-256-ecb -nopad -K 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f -in block | od -An -tx1 | tr -d ' \n')" = 8ea2b7ca516745bfeafc49904b496089
test "$(head -c 16 /dev/zero | openssl enc -chacha20 -K 0000000000000000000000000000000000000000000000000000000000000000 -iv 00000000000000000000000000000000 | od -An -tx1 | tr -d ' \n')" = 76b8e0ada0f13d90405d6ae55386bd28
for cipher in aes-128-cbc aes-256-ctr aes-192-ofb aes-128-cfb aria-128-cbc camellia-256-cbc chacha20 des-ede3-cbc sm4-ctr; do
  openssl enc -$cipher -pbkdf2 -iter 100 -nosalt -k "$1" -in data -out secret
  sha256sum secret
  openssl enc -d -$cipher -pbkdf2 -iter 100 -nosalt -k "$1" -in secret -out plain
  cmp plain data
done
# RFC 8032, 7.1, test 1: the key; signatures of Ed25519 are deterministic.
perl -e 'print pack "H*", "302e020100300506032b6570042204209d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"' >key.der
openssl pkey -inform DER -in key.der -out key.pem
openssl pkey -in key.pem -pubout -out public.pem
openssl pkeyutl -sign -inkey key.pem -rawin -in block -out signature
sha256sum signature public.pem
openssl pkeyutl -verify -pubin -inkey public.pem -rawin -in block -sigfile signature
# Keys at random: only that what is signed verifies.
openssl genrsa -out rsa.pem 1024
openssl dgst -sha256 -sign rsa.pem -out signature data
openssl dgst -sha256 -prverify rsa.pem -signature signature data
openssl ecparam -name prime256v1 -genkey -noout -out ec.pem
openssl dgst -sha256 -sign ec.pem -out signature data
openssl dgst -sha256 -prverify ec.pem -signature signature data
openssl prime 170141183460469231731687303715884105727 170141183460469231731687303715884105725
for cipher in aes-128-cbc chacha20-poly1305 aes-128-gcm; do
  openssl speed -seconds 1 -bytes 1024 -evp $cipher >speed 2>&1 || { cat speed; exit 1; }
done
