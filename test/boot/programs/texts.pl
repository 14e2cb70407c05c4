# Prints what depends on nothing but the CPU and perl: perl texts.pl SEED ROUNDS
use strict;
use warnings;
use Digest::SHA qw(sha256_hex);
use List::Util qw(reduce shuffle sum0);
use Math::BigFloat;
use Math::BigInt;

my ($seed, $rounds) = @ARGV;
my $state = $seed;
# A generator of our own: perl's has a different one for each build.
sub number { $state = ($state * 1103515245 + 12345) & 0x7fffffff; return ($state >> 8) % $_[0] }
sub show { my ($name, @values) = @_; print "$name ", sha256_hex(join "\0", @values), "\n" }

for my $round (1 .. $rounds) {
  $state = $seed * 1000 + $round;
  my @words = map { join '', map { chr(97 + number(26)) } 0 .. 2 + number(9) } 1 .. 6000;
  my $text = join ' ', @words;

  show 'match', $text =~ /\b((?:[aeiou][^aeiou ]){2,}|q\w?u?\w*)\b/g;
  (my $changed = $text) =~ s/(\w)(\w*)/\u$2$1/g;
  show 'replace', $changed;
  (my $counted = $text) =~ tr/a-y/b-z/;
  show 'transliterate', $counted, ($text =~ tr/e//);
  show 'named', map { /^(?<head>[^aeiou]*)(?<rest>.*)$/ ? "$+{rest}-$+{head}" : () } @words[0 .. 999];
  show 'balanced', '((a)(b(c)))(d' =~ /(\((?:[^()]++|(?1))*\))/g;

  my %count;
  $count{substr $_, 0, 2}++ for @words;
  show 'hash', map { "$_=$count{$_}" } sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count;
  show 'sort', sort { length $a <=> length $b or reverse($a) cmp reverse($b) } @words;
  show 'numeric', sort { $a <=> $b } map { number(1 << 20) / 7 } 1 .. 3000;

  my @doubles = map { (number(1 << 22) - (1 << 21)) * 10**(number(40) - 20) } 1 .. 2000;
  show 'sprintf', map { sprintf '%.15g|%e|%10.3f|%a|%s', $_, $_, $_ / 1e10, $_, $_ } @doubles;
  show 'integers', map { sprintf '%d|%x|%o|%b|%08X', ($_) x 5 } map { number(1 << 22) << number(40) } 1 .. 2000;
  show 'functions', map { sprintf '%.17g', sin($_) + cos($_) + exp($_ / 50) + log($_ + 1) + sqrt($_) } map { number(1000) / 7 } 1 .. 500;

  my $packed = pack 'N n C a8 d> f< w/a* q> U0', 1 << 31, 65535, 200, 'domain', 1 / 3, 0.1, 'length', -5;
  show 'pack', $packed, unpack 'H*', $packed;
  show 'unpack', unpack('%32C*', $text), unpack('(A3)*', substr $text, 0, 3000);
  show 'vectors', do { my $bits = ''; vec($bits, number(4000), 1) = 1 for 1 .. 500; unpack 'b*', $bits };

  my $big = reduce { $a * $b } map { Math::BigInt->new($_) } 1 .. 120;
  show 'big', "$big", Math::BigInt->new(3)->bmodpow($big, Math::BigInt->new(2)->bpow(127)->bsub(1));
  show 'root', Math::BigFloat->new(2)->bsqrt(60), Math::BigFloat->bpi(60);

  my %tree;
  for my $word (@words) { my $node = \%tree; $node = $node->{$_} //= {} for split //, $word; $node->{''} = 1 }
  my $walk; $walk = sub { my ($node) = @_; return join '', map { "($_" . (ref $node->{$_} ? $walk->($node->{$_}) : '') . ')' } sort keys %$node };
  show 'tree', $walk->(\%tree);
  show 'eval', map { eval { die { code => $_ } if $_ % 3; $_ } // $@->{code} * 2 } 1 .. 1000;
}
