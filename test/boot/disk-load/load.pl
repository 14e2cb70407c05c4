#!/usr/bin/perl
# What a guest does to its disks while the host watches its console: usage: load.pl SEED OPERATIONS RESET_AT
#
# Four processes write, discard, flush and read back /dev/xvda, each its own blocks, which lie between those of the others. All of
# it follows from SEED (model.ts says the same in TypeScript), so the host knows what must be on the disk when it has read
#
#     F PROCESS OPERATION E     all that this process did up to here has been flushed
#     G FILE E                  the file is on /mnt (ext4 on /dev/xvdb), by fsync
#
# Process 0 resets the machine at RESET_AT, without a sync. The first block has a mark by which the guest knows that it was.
use strict;
use warnings;
use Fcntl;
use IO::Handle;

use constant { PROCESSES => 4, BLOCK => 4096, BLKDISCARD => 0x1277 };
# In blocks. AREA_A: neighbours belong to different processes. AREA_B: CHUNK blocks belong to one, which may discard 16 at once.
use constant { AREA_A => 16, BLOCKS_A => 4096, AREA_B => 4112, CHUNKS => 128, CHUNK => 64, CLUSTER => 16 };

my ($seed, $operations, $reset_at) = @ARGV;
my $mark = "load $seed\n";
sysopen(my $disk, '/dev/xvda', O_RDWR) or die "xvda: $!";
sysread($disk, my $found, length $mark);
if ($found eq $mark) {
  print "AFTER RESET\n";
  exit;
}
sysseek($disk, 0, 0);
syswrite($disk, $mark);
$disk->sync or die "sync: $!";

my @children = map { my $process = $_; my $pid = fork // die; if (!$pid) { load($process); exit } $pid } 0 .. PROCESSES - 1;
my $files = fork // die;
if (!$files) { files(); exit }
my $wrong = 0;
for (@children) { waitpid $_, 0; $wrong ||= $? }
kill 'TERM', $files;
waitpid $files, 0;
$disk->sync or die "sync: $!";
print $wrong ? "LOAD FAILED\n" : "LOAD DONE\n";

# xorshift32, as in model.ts.
my $random;
sub random {
  $random ^= $random << 13 & 0xffffffff;
  $random ^= $random >> 17;
  $random ^= $random << 5 & 0xffffffff;
  return $random % $_[0];
}

sub block {
  my ($block, $operation) = @_;
  return join '', map { sprintf("%08x %08x %08x %04x\n", $seed, $block, $operation, $_) x 16 } 0 .. 7;
}

sub load {
  my ($process) = @_;
  sysopen(my $disk, '/dev/xvda', O_RDWR) or die "xvda: $!";
  $random = ($seed * 16 + $process + 1) & 0xffffffff;
  my %written;
  my $flushes = 0;
  for my $operation (1 .. $operations) {
    exec '/bin/busybox', 'reboot', '-n', '-f' if $process == 0 && $operation == $reset_at;
    my $kind = random(16);
    if ($kind < 8) {
      my $block = AREA_A + random(BLOCKS_A / PROCESSES) * PROCESSES + $process;
      sysseek($disk, $block * BLOCK, 0);
      syswrite($disk, block($block, $operation)) == BLOCK or die "write: $!";
      $written{$block} = $operation;
    } elsif ($kind < 11) {
      my $chunk = random(CHUNKS / PROCESSES) * PROCESSES + $process;
      my $first = random(CHUNK);
      my $count = 1 + random(CHUNK - $first);
      my $start = AREA_B + $chunk * CHUNK + $first;
      sysseek($disk, $start * BLOCK, 0);
      my $bytes = join '', map { block($_, $operation) } $start .. $start + $count - 1;
      syswrite($disk, $bytes) == length $bytes or die "write: $!";
      $written{$_} = $operation for $start .. $start + $count - 1;
    } elsif ($kind == 11) {
      my $chunk = random(CHUNKS / PROCESSES) * PROCESSES + $process;
      my $first = random(CHUNK / CLUSTER);
      my $count = 1 + random(CHUNK / CLUSTER - $first);
      my $start = AREA_B + $chunk * CHUNK + $first * CLUSTER;
      my $range = pack 'QQ', $start * BLOCK, $count * CLUSTER * BLOCK;
      ioctl($disk, BLKDISCARD, $range) or die "discard: $!";
      delete $written{$_} for $start .. $start + $count * CLUSTER - 1;
    } elsif ($kind < 14) {
      # What was written by this run is what is read.
      my @blocks = sort { $a <=> $b } keys %written;
      next unless @blocks;
      my $block = $blocks[rand @blocks];
      sysseek($disk, $block * BLOCK, 0);
      sysread($disk, my $bytes, BLOCK) == BLOCK or die "read: $!";
      next if $bytes eq block($block, $written{$block});
      syswrite(STDOUT, "WRONG block $block, of operation $written{$block}: " . substr($bytes, 0, 31) . "\n");
      exit 1;
    } else {
      $disk->sync or die "sync: $!";
      syswrite(STDOUT, "F $process $operation E\n");
      next if ++$flushes % 8;
      # What is read next comes from the disk.
      open(my $caches, '>', '/proc/sys/vm/drop_caches') or die;
      print $caches "1\n";
    }
  }
}

# Each fifth file is removed again, and then the storage of what was removed is given back.
sub files {
  for (my $file = 1; ; $file++) {
    $random = ($seed * 16 + $file) & 0xffffffff;
    open(my $handle, '>', "/mnt/$seed-$file") or die "$file: $!";
    print $handle "$seed $file\n" x (1 + random(20000));
    $handle->flush;
    $handle->sync or die "sync: $!";
    close $handle;
    syswrite(STDOUT, "G $file E\n");
    next if $file % 5;
    unlink "/mnt/$seed-$file";
    # They fill the disk otherwise.
    unlink map { "/mnt/$seed-" . ($file - 40 + $_) } 0 .. 4 if $file > 40;
    system '/bin/busybox', 'fstrim', '/mnt';
  }
}
