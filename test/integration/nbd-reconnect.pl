#!/usr/bin/perl
# Stays in a guest beside its kernel's NBD client, and makes a new connection of /dev/nbd0 for each one that dies.
# nbd-client does this with -persist from 3.27 on; earlier ones let the kernel answer by errors as soon as all connections are dead.
# Usage: nbd-reconnect.pl HOST PORT EXPORT SECONDS, the last being how long requests wait for a connection. Needs perl without any module.
# Netlink messages: linux/netlink.h, linux/genetlink.h, linux/nbd-netlink.h. NBD: doc/proto.md of NetworkBlockDevice/nbd.

my ($host, $port, $export, $seconds) = @ARGV;
my ($AF_INET, $SOCK_STREAM, $AF_NETLINK, $SOCK_RAW, $NETLINK_GENERIC, $SOL_NETLINK, $NETLINK_ADD_MEMBERSHIP) = (2, 1, 16, 3, 16, 270, 1);
my ($NLM_F_REQUEST, $NLM_F_ACK, $NLMSG_ERROR, $GENL_ID_CTRL, $CTRL_CMD_GETFAMILY) = (1, 4, 2, 16, 3);
my ($NBD_CMD_RECONFIGURE, $NBD_CMD_LINK_DEAD, $NBD_ATTR_INDEX, $NBD_ATTR_SOCKETS, $NBD_ATTR_DEAD_CONN_TIMEOUT) = (3, 4, 1, 7, 8);

sub attribute { my ($type, $data) = @_; my $bytes = pack('SSa*', 4 + length $data, $type, $data); return $bytes . "\0" x (-length($bytes) % 4) }

sub attributes {
  my ($bytes) = @_;
  my %found;
  while (length $bytes >= 4) {
    my ($length, $type) = unpack 'SS', $bytes;
    $found{$type & 0x3fff} = substr $bytes, 4, $length - 4;
    $length += -$length % 4;
    $bytes = length $bytes > $length ? substr $bytes, $length : '';
  }
  return \%found;
}

sub netlink { socket my $socket, $AF_NETLINK, $SOCK_RAW, $NETLINK_GENERIC or die "netlink: $!"; bind $socket, pack 'SSLL', $AF_NETLINK, 0, 0, 0 or die "bind: $!"; return $socket }

sub receive { my ($socket) = @_; defined recv $socket, my $bytes, 65536, 0 or die "netlink: $!"; return $bytes }

# Returns the answer's attributes, if there is one before the acknowledgement.
sub command {
  my ($family, $command, $payload) = @_;
  my $socket = netlink();
  send $socket, pack('LSSLLCCSa*', 20 + length $payload, $family, $NLM_F_REQUEST | $NLM_F_ACK, 1, 0, $command, 1, 0, $payload), 0 or die "netlink: $!";
  my $answer;
  while (my $bytes = receive($socket)) {
    while (length $bytes >= 16) {
      my ($length, $type, undef, undef, undef, $status) = unpack 'LSSLLl', $bytes;
      if ($type == $NLMSG_ERROR) { $! = -$status; die "netlink command $command: $!\n" if $status; return $answer }
      $answer = attributes(substr $bytes, 20, $length - 20);
      $bytes = substr $bytes, $length;
    }
  }
}

sub read_bytes { my ($socket, $count) = @_; my $bytes = ''; while (length $bytes < $count) { sysread $socket, $bytes, $count - length $bytes, length $bytes or return } return $bytes }

# A connection in the transmission phase, or nothing.
sub connection {
  socket my $socket, $AF_INET, $SOCK_STREAM, 0 or die "socket: $!";
  connect $socket, pack 'Sna4x8', $AF_INET, $port, pack 'C4', split /\./, $host or return;
  my $greeting = read_bytes($socket, 18) or return;
  syswrite $socket, pack 'Na8NNNa*n', 3, 'IHAVEOPT', 7, 6 + length $export, length $export, $export, 0;
  while (my $reply = read_bytes($socket, 20)) {
    my (undef, undef, $type, $length) = unpack 'Q>NNN', $reply;
    read_bytes($socket, $length) or return if $length;
    return $socket if $type == 1;
    return if $type & 0x80000000;
  }
  return;
}

my $family = command($GENL_ID_CTRL, $CTRL_CMD_GETFAMILY, attribute(2, "nbd\0"));
my $nbd = unpack 'S', $family->{1};
my ($group) = map { unpack 'L', attributes($_)->{2} } values %{attributes($family->{7})};
my $news = netlink();
setsockopt $news, $SOL_NETLINK, $NETLINK_ADD_MEMBERSHIP, pack 'L', $group or die "membership: $!";
my $device = attribute($NBD_ATTR_INDEX, pack 'L', 0);
command($nbd, $NBD_CMD_RECONFIGURE, $device . attribute($NBD_ATTR_DEAD_CONN_TIMEOUT, pack 'Q', $seconds));
# Whoever started this goes on.
my $child = fork // die "fork: $!";
exit if $child;
$| = 1;
while (1) {
  my (undef, $type, undef, undef, undef, $command) = unpack 'LSSLLC', receive($news);
  next unless $type == $nbd && $command == $NBD_CMD_LINK_DEAD;
  my $socket;
  until ($socket = connection()) { select undef, undef, undef, 0.1 }
  command($nbd, $NBD_CMD_RECONFIGURE, $device . attribute($NBD_ATTR_SOCKETS, attribute(1, attribute(1, pack 'L', fileno $socket))));
  print "guest: reconnected\n";
}
