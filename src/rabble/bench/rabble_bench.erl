%% The workloads of `rabble bench` that Erlang is held against, written as an Erlang user would.
%% Each prints two numbers: how many messages were delivered (or processes made), and the
%% nanoseconds from the first send to the receipt of the last message.

-module(rabble_bench).
-export([main/1]).

%% Of `api` it is the server alone: it prints its address, and ends with its standard input.
main(["api"]) ->
    Answerer = spawn(fun answerer/0),
    Options = [binary, {ip, {127, 0, 0, 1}}, {packet, 4}, {active, false}, {nodelay, true},
               {delay_send, true}, {backlog, 1024}],
    {ok, Listener} = gen_tcp:listen(0, Options),
    {ok, Port} = inet:port(Listener),
    spawn(fun() -> accept(Listener, Answerer) end),
    io:format("127.0.0.1:~b~n", [Port]),
    eof = io:get_line(""),
    halt(0);

main([Name | Numbers]) ->
    {Delivered, Nanoseconds} = run(Name, [list_to_integer(N) || N <- Numbers]),
    io:format("~b ~b~n", [Delivered, Nanoseconds]),
    halt(0).

now_ns() -> erlang:monotonic_time(nanosecond).

run("pingpong", [Turns]) ->
    Main = self(),
    Pong = spawn(fun() -> pong(0) end),
    Start = now_ns(),
    spawn(fun() -> Pong ! {self(), ball}, ping(Turns, 0, Main) end),
    Pongs = receive {pongs, P} -> P end,
    End = now_ns(),
    Pong ! {Main, stop},
    Pings = receive {pings, Q} -> Q end,
    {Pongs + Pings, End - Start};

run("ring", [Processes, Hops]) ->
    Main = self(),
    Last = spawn(fun() -> receive {next, Next} -> link_loop(Next, Main, 0) end end),
    First = lists:foldl(
        fun(_, Next) -> spawn(fun() -> link_loop(Next, Main, 0) end) end,
        Last, lists:seq(2, Processes)),
    Last ! {next, First},
    Start = now_ns(),
    First ! Hops,
    receive done -> ok end,
    End = now_ns(),
    First ! {total, 0, Processes},
    Delivered = receive {total, T} -> T end,
    {Delivered, End - Start};

run("count", [Increments, Batch]) ->
    Main = self(),
    Counter = spawn(fun() -> counter(0) end),
    Producer = spawn(fun() -> producer(Counter, Increments, Batch, Main) end),
    Start = now_ns(),
    Producer ! more,
    Total = receive {total, T} -> T end,
    {Total, now_ns() - Start};

run("spawn", [Processes]) ->
    Before = erlang:system_info(process_count),
    Start = now_ns(),
    Last = spawn_idle(Processes, undefined),
    Last ! {self(), 'begun?'},
    receive 'begun?' -> ok end,
    End = now_ns(),
    {erlang:system_info(process_count) - Before, End - Start}.

ping(Turns, Pongs, Main) ->
    receive
        {_, _} when Pongs + 1 =:= Turns -> Main ! {pongs, Pongs + 1};
        {From, Ball} -> From ! {self(), Ball}, ping(Turns, Pongs + 1, Main)
    end.

pong(Pings) ->
    receive
        {From, stop} -> From ! {pings, Pings};
        {From, Ball} -> From ! {self(), Ball}, pong(Pings + 1)
    end.

link_loop(Next, Main, Seen) ->
    receive
        {total, Total, 1} -> Main ! {total, Total + Seen};
        {total, Total, Left} -> Next ! {total, Total + Seen, Left - 1};
        1 -> Main ! done, link_loop(Next, Main, Seen + 1);
        Hops -> Next ! Hops - 1, link_loop(Next, Main, Seen + 1)
    end.

counter(Total) ->
    receive
        {total, From} -> From ! {total, Total};
        N -> counter(Total + N)
    end.

producer(Counter, Left, Batch, Main) ->
    receive more -> ok end,
    Now = min(Left, Batch),
    increment(Counter, Now),
    case Left - Now of
        0 -> Counter ! {total, Main};
        More -> self() ! more, producer(Counter, More, Batch, Main)
    end.

increment(_, 0) -> ok;
increment(Counter, N) -> Counter ! 1, increment(Counter, N - 1).

spawn_idle(0, Last) -> Last;
spawn_idle(N, _) -> spawn_idle(N - 1, spawn(fun idle/0)).

idle() ->
    receive {From, Message} -> From ! Message, idle() end.

%% A process for each connection, which reads and writes, and one that answers.

-define(ACTIVE, 100).

answerer() ->
    receive {From, Id, Msg} -> From ! {answer, Id, Msg}, answerer() end.

accept(Listener, Answerer) ->
    {ok, Socket} = gen_tcp:accept(Listener),
    Pid = spawn(fun() -> receive begin_now -> connection(Socket, Answerer) end end),
    ok = gen_tcp:controlling_process(Socket, Pid),
    Pid ! begin_now,
    accept(Listener, Answerer).

connection(Socket, Answerer) ->
    ok = inet:setopts(Socket, [{active, ?ACTIVE}]),
    serve(Socket, Answerer).

serve(Socket, Answerer) ->
    receive
        {tcp, Socket, Frame} ->
            {[0, Id, Msg], <<>>} = decode(Frame),
            Answerer ! {self(), Id, Msg},
            serve(Socket, Answerer);
        {answer, Id, Value} ->
            ok = gen_tcp:send(Socket, encode([0, Id, Value])),
            serve(Socket, Answerer);
        {tcp_passive, Socket} -> connection(Socket, Answerer);
        {tcp_closed, Socket} -> ok
    end.

%% As much of msgpack as is in these messages.

decode(<<0:1, N:7, Rest/binary>>) -> {N, Rest};
decode(<<16#cc, N, Rest/binary>>) -> {N, Rest};
decode(<<16#cd, N:16, Rest/binary>>) -> {N, Rest};
decode(<<2#101:3, Size:5, Text:Size/binary, Rest/binary>>) -> {Text, Rest};
decode(<<2#1001:4, Size:4, Rest/binary>>) -> elements(Size, Rest, []).

elements(0, Rest, Read) -> {lists:reverse(Read), Rest};
elements(Left, Data, Read) ->
    {Element, Rest} = decode(Data),
    elements(Left - 1, Rest, [Element | Read]).

encode(N) when is_integer(N), N < 128 -> <<N>>;
encode(N) when is_integer(N), N < 256 -> <<16#cc, N>>;
encode(N) when is_integer(N) -> <<16#cd, N:16>>;
encode(Text) when is_binary(Text) -> [<<2#101:3, (byte_size(Text)):5>>, Text];
encode(List) -> [<<2#1001:4, (length(List)):4>> | [encode(Element) || Element <- List]].
