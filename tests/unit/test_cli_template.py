"""The template language of --format. Outputs and error texts were recorded from Docker 28's client over the same data."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.cli.gotypes import MISSING, Nil, Record
from tare.cli.template import Template, TemplateError, UnknownField
from tare.cli.typed import typed

CONTAINER: dict[str, Any] = {
    "Id": "c0ffee" * 10,
    "Name": "/web",
    "State": {"Status": "running", "Running": True, "ExitCode": 3, "Error": ""},
    "RestartCount": 0,
    "ExecIDs": None,
    "HostConfig": {"NanoCpus": 5, "PidsLimit": None, "CapAdd": None, "LogConfig": {"Type": "x", "Config": {"b": "c", "a": "b"}}},
    "Mounts": [
        {"Type": "bind", "Source": "/s", "Destination": "/d", "Mode": "ro", "RW": False, "Propagation": "rprivate"}
    ],
    "Config": {"Cmd": ["-c", "x y"], "Env": ["A=<b>"], "OnBuild": None, "Volumes": None, "Labels": {"z": "1", "a.b": "c"}},
    "NetworkSettings": {
        "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "443/tcp": None},
        "Networks": {"bridge": {"IPAddress": "172.17.0.2"}, "other": {"IPAddress": "10.0.0.2"}},
    },
}  # fmt: skip


def rendered(source: str) -> str:
    return Template(source).render(typed(CONTAINER, "container"))


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("{{.State.ExitCode}}", "3"),
        ("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "172.17.0.210.0.0.2"),
        ('{{index .Config.Labels "a.b"}}', "c"),
        ('{{index .Config.Labels "nope"}}|', "|"),
        ("{{.Config.Labels.nope}}", "<no value>"),
        (
            "{{json .Mounts}}",
            '[{"Type":"bind","Source":"/s","Destination":"/d","Mode":"ro","RW":false,"Propagation":"rprivate"}]',
        ),
        ("{{json .Config.Labels}}{{json .Config.Env}}{{json .ExecIDs}}", '{"a.b":"c","z":"1"}["A=<b>"]null'),
        ("{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}}", "none"),
        ("{{.State.Health}} {{.HostConfig.PidsLimit}} {{.HostConfig.CapAdd}} {{.Config.Volumes}}", "<nil> <nil> [] map[]"),
        ("{{.Mounts}}", "[{bind  /s /d  ro false rprivate}]"),
        ("{{.NetworkSettings.Ports}}", "map[443/tcp:[] 80/tcp:[{0.0.0.0 8080}]]"),
        ("{{.Config.Cmd}} {{.Config.Labels}}", "[-c x y] map[a.b:c z:1]"),
        ("{{.ID}} {{.HostConfig.NanoCPUs}}", "c0ffee" * 10 + " 5"),
        ("{{.HostConfig.LogConfig.Config.a}}", "b"),
        ("{{json .HostConfig.LogConfig}}", '{"Type":"x","Config":{"a":"b","b":"c"}}'),
        (
            "{{range $p, $c := .NetworkSettings.Ports}}{{if $c}}{{$p}} -> {{(index $c 0).HostPort}} {{end}}{{end}}",
            "80/tcp -> 8080 ",
        ),
        ("{{.NetworkSettings.Networks.nope.IPAddress}}", "<no value>"),
        ('{{join .Config.Cmd ","}} {{join .Config.OnBuild ","}}|', "-c,x y |"),
        ('{{split .Name "e"}} {{title "ab cd-ef"}} {{upper .Name}} {{lower "AB"}}', "[/w b] Ab Cd-Ef /WEB ab"),
        ('{{pad .Name 2 3}}|{{pad "" 2 3}}|{{truncate .Name 2}}', "  /web   ||/w"),
        ('{{print 1 2 "x" 3 4}} {{println .Name .RestartCount}}', "1 2x3 4 /web 0\n"),
        ('{{printf "%s|%5d|%-8q|%v|%x|%t|%T" .Name 42 "a" .Config.Cmd "hi" true .Name}}',
         '/web|   42|"a"     |[-c x y]|6869|true|string'),
        ('{{printf "%d %s" "x" 5}} {{printf "%s"}} {{printf "%d" 1 2}}',
         "%!d(string=x) %!s(int=5) %!s(MISSING) 1%!(EXTRA int=2)"),
        ('{{printf "%5.2f %g %e %+d %05d %c %U %%" 3.14159 1.5 2.5 5 42 65 65}}', " 3.14 1.5 2.500000e+00 +5 00042 A U+0041 %"),
        ('{{printf "%*d|%-*s|" 5 1 4 "a"}}', "    1|a   |"),
        ('{{if and .State.Running (eq .Name "/web")}}yes{{end}}', "yes"),
        ('{{eq .Name "a" "/web"}} {{ne 1 2}} {{lt 1 2}} {{le 2 2}} {{gt 1 2}} {{ge 2 2}}', "true true true true false true"),
        ('{{and .Name ""}}|{{or "" 0 "z"}} {{not 1}} {{or .State.Running (index .Mounts 9)}}', "|z false true"),
        ("{{len .Mounts}} {{len .Name}} {{len .Config.OnBuild}} {{slice .ID 0 6}} {{slice .ID 58}}", "1 4 0 c0ffee ee"),
        ("{{with .State}}{{.Status}}{{end}}{{with $x := .Name}}{{$x}}{{$.Name}}{{end}}", "running/web/web"),
        ("{{with .State.Error}}e{{else}}no{{end}}", "no"),
        ("{{range $i, $m := .Mounts}}{{$i}}{{$m.Type}}{{end}}{{range .Config.OnBuild}}x{{else}}-{{end}}", "0bind-"),
        ("{{range .Config.Cmd}}{{break}}{{end}}{{range $x := .Config.Cmd}}{{continue}}{{end}}ok", "ok"),
        ("{{range 3}}{{.}}{{end}}", "012"),
        ("  {{- .Name -}}   x {{/* c */}}y {{- ` a\\n` -}} z", "/webx y a\\nz"),
        ("{{$x := 1}}{{if true}}{{$x = 2}}{{end}}{{$x}}", "2"),
        ("{{if false}}a{{else if false}}b{{else}}c{{end}}", "c"),
        ('{{.Name | printf "%s-%s" "a"}} {{"abc" | len}} {{"q\\t\\x41\\u00e9"}}', "a-/web 3 q\tAé"),
        ("{{1.5}} {{0x1f}} {{1e3}} {{017}} {{1_000}} {{'a'}} {{1e21}} {{0.00001}} {{1234567.5}} {{-0.5}}",
         "1.5 31 1000 15 1000 97 1e+21 1e-05 1.2345675e+06 -0.5"),
        ("{{.Name | }}{{(.Name | )}}", "/web/web"),
        ("plain", "plain"),
        ("", ""),
    ],
)  # fmt: skip
def test_output(source: str, output: str) -> None:
    assert rendered(source) == output


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{.Foo", "1: unclosed action"),
        ("{{.Foo}", "1: bad character U+007D '}'"),
        ("{{foo .Name}}", '1: function "foo" not defined'),
        ("{{if .Name}}x", "1: unexpected EOF"),
        ("a\n{{end}}", "2: unexpected {{end}}"),
        ("{{}}", "1: missing value for command"),
        ('{{"abc}}', "1: unterminated quoted string"),
        ("{{| .Name}}", '1: unexpected "|" in command'),
        ("{{$x}}", '1: undefined variable "$x"'),
        ("{{(.Name}}", "1: unclosed left paren"),
        ("{{.Name)}}", "1: unexpected right paren"),
        ("{{break}}", "1: {{break}} outside {{range}}"),
        ('{{"a".b}}', '1: unexpected . after term "\\"a\\""'),
        ("{{1x}}", '1: bad number syntax: "1x"'),
        ("{{.A | 1}}", "1: non executable command in pipeline stage 2"),
        ("{{/* a", "1: unclosed comment"),
        ("{{if}}{{end}}", "1: missing value for if"),
        ("{{else}}", "1: unexpected {{else}}"),
        ("{{" + "(" * 200 + "1" + ")" * 200 + "}}", "1: nested too deeply"),
    ],
)
def test_a_template_that_cannot_be_parsed(source: str, text: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Template(source)
    assert str(caught.value) == "template: :" + text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{.Foo}}", '1:2: executing "" at <.Foo>: can\'t evaluate field Foo in type container'),
        ("{{.State.Health.Status}}", '1:8: executing "" at <.State.Health.Status>: nil pointer evaluating'),
        ("é\n {{.Name.Foo}}", '2:8: executing "" at <.Name.Foo>: can\'t evaluate field Foo in type interface {}'),
        ("{{index .Mounts 5}}", '1:2: executing "" at <index .Mounts 5>: error calling index: index out of range: 5'),
        ("{{index .Mounts 1}}", "error calling index: reflect: slice index out of range"),
        ('{{index .Mounts "x"}}', "error calling index: cannot index slice/array with type string"),
        ("{{index .Config.Labels 5}}", "error calling index: value has type int; should be string"),
        ('{{index .NetworkSettings.Ports "80/tcp"}}', "error calling index: value has type string; should be nat.Port"),
        ("{{len 5}}", "error calling len: len of type int"),
        ("{{len}}", '1:2: executing "" at <len>: wrong number of args for len: want 1 got 0'),
        ("{{upper 5}}", '1:8: executing "" at <5>: expected string; found 5'),
        ("{{upper .Mounts}}", '1:8: executing "" at <.Mounts>: wrong type for value; expected string; got []interface {}'),
        ('{{"x" "y"}}', '1:2: executing "" at <"x">: can\'t give argument to non-function "x"'),
        ('{{.Name "x"}}', "Name has arguments but cannot be invoked as function"),
        ('{{eq 1 "a"}}', "error calling eq: incompatible types for comparison"),
        ("{{eq 1}}", "error calling eq: missing argument for comparison"),
        ("{{lt .Mounts 1}}", "error calling lt: invalid type for comparison"),
        ("{{slice .ID 0 99}}", "error calling slice: index out of range: 99"),
        ("{{nil}}", '1:2: executing "" at <nil>: nil is not a command'),
        ("{{range .Name}}{{end}}", '1:8: executing "" at <.Name>: range can\'t iterate over /web'),
    ],
)
def test_a_template_that_fails_on_its_data(source: str, text: str) -> None:
    with pytest.raises(TemplateError) as caught:
        rendered(source)
    assert text in str(caught.value)
    assert str(caught.value).startswith("template: :")


def test_plain_json_with_missing_keys_as_errors() -> None:
    """The second run of inspect."""
    data = {"A": {"B": None}, "L": [1, 2]}
    assert Template("{{.A}} {{.L}} {{.A.B}}").render(data, strict=True) == "map[B:<nil>] [1 2] <no value>"
    for source, text in (
        ("{{.A.C}}", '<.A.C>: map has no entry for key "C"'),
        ("{{.A.B.C}}", "<.A.B.C>: nil pointer evaluating interface {}.C"),
        ('{{(index .A "x").Y}}', '1:12: executing "" at <"x">: nil data; no entry for key "Y"'),
        ('{{index (index .A "x") 0}}', "error calling index: index of untyped nil"),
    ):
        with pytest.raises(TemplateError) as caught:
            Template(source).render(data, strict=True)
        assert text in str(caught.value)


def test_what_was_written_before_an_error_is_kept() -> None:
    with pytest.raises(TemplateError) as caught:
        rendered("a{{.Name}}b{{.Foo}}c")
    assert caught.value.partial == "a/webb"
    assert isinstance(caught.value, UnknownField)


def test_methods() -> None:
    class Thing(Record):
        go_type = "*x.Thing"

        def method(self, name: str) -> Any:
            return (lambda word: word * 2) if name == "Twice" else None

    assert Template('{{.Twice "ab"}} {{"c" | .Twice}}').render(Thing()) == "abab cc"
    with pytest.raises(UnknownField, match="wrong number of args for Twice: want 1 got 0"):
        Template("{{.Twice}}").render(Thing())
    with pytest.raises(UnknownField, match=r"can't evaluate field Id in type \*x.Thing"):
        Template("{{.Id}}").render(Thing())


def test_json_escapes_what_could_steer_a_terminal() -> None:
    value = {"a": "\x1b\x7f\x9b\u2028é\n", "b": [1.5, True, None], "c": {}}
    assert Template("{{json .}}").render(value) == (
        '{"a":"\\u001b\\u007f\\u009b\\u2028é\\n","b":[1.5,true,null],"c":{}}'
    )


def test_truth_of_odd_values() -> None:
    source = "{{if .V}}1{{else}}0{{end}}"
    values: list[Any] = [None, MISSING, Nil("<nil>"), Nil("[]"), "", 0, 0.0, [], {}, False, "0", 1, [0], {"": 0}, Record()]
    assert "".join(Template(source).render({"V": value}) for value in values) == "0" * 10 + "1" * 5


@given(st.text(alphabet='{}.-|()$:="`\'\\ \n/*,_aA1irfnge"', max_size=40))
def test_any_text_is_a_template_or_an_error(text: str) -> None:
    try:
        Template("{{" + text).render({"a": "b"})
    except TemplateError as error:
        assert str(error).startswith("template: :")
