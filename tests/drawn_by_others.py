"""A file of segments by highdicom, and one of contours by rt-utils, as these programs wrote them."""

from __future__ import annotations

import base64
import zlib

SEGMENTS = zlib.decompress(
    base64.b85decode(
        "c-rk*&2Jk;6o1~h!Ae8fq$P@~s!U6TQq-(wX1}EhlG+h5@)usG(8?0n$tGPvY-2m6<v<Ikic?c@;uH{v9{3~pBlrV)<k%zPKzTDecAPf-P~)"
        "^H%Er#Vef#Ep%x~UrCJMmoy)xN!Uc>uRE(w3)U4sM^FNr%|2@UT{*;Bv_Zg>_o7^T!RY=apVewpDohNZy>+RVi^+%eF~FddIl%QQU0@;$?2w"
        "r?@hW1j0e=z;l;=UEoB8TBpK^L>}PuC0NNeoj0VOFS{mViMn--Zh4AxRz;(bTl{)!J-b=qP1%)(Q<R08r(BDNkIzIfex94a`y5<rdldz^Yi5"
        "^sGo$)d<r<_4r3-w;rL4a7%<LF%QtMx<1R(3sprl?3Z{oL2Pq(!5n#UWK9(89%!J<DHNz6tE#7{CbtWNL_y~0^$Q3nMN9it<3gYcuy{CD5BK"
        "QR0=LEpNkKn<*gn0Y0)OD540ii2REM-qVwQ`OYOK36PuN$>{8qN1K+T7D<Yfq!?J&kq{_hYz%#<q26HF@R`k=KWajz6V>2A>ff(Gi`)P@=Lw"
        "b(q6W1MGUx<2Tbl`ch&`;I^f3yDu|{yYU9;b>R*2<XE8_*$OHbV1D`Qji?iKqh^DID7MzaMwc{KN%vYvI?avta!8`}+FCf%IX?%jUqrk)h~s"
        "%O9wdUrQ9yEGl%+t!rzB+3d5oV-<cd=}A}sVHi1B~*^F0fTJtig1R@j(Tk(Zl|Zab=Pberu?T+i4x=c;N(Atv8x(6%y_sXmkSn9KGUb5*?t1"
        "kKg%H??+1zKZJYTKgv1=!7ez+a$~Fu+|N+?5IPcMyFeAVEkUiAHZN|3{=dYtoQ_!+Rf##(}@~u0|mpIJGzdmK71CFbLKd<jr@(gZF$u7O=dC"
        "Ir50zV?;?qt)O2iuYeaA|feFY48rX#3?jj_HQh7&I6RqZO&V==ud!n+Estg^VZe{an88K?u3?B{8wHy-*r<RR70%pQ(>QkHJ*LHkN*|Z3pmA"
        "-YgE`J!R?{IUzl7u=OMW1U*9uxKalq;Tua=03{L&R={1mT*T`NGC}J#5Pr_uW2ZLV))(!I|HTGns;{=o(ULs-<75btBAXMx1j3arT*kBzE>V"
        "<co!3da+#0FK{x0t4ko~p`=T@X|$W@OOWV|P4p#AN`TTxU((N{QKGbt7U^IVE@caN45?#mfy-5e%dco#$1|1CakUQK@2~I_RAw`j+G5v_*LY"
        "B_s5L$cm8jF%2<uowoJSpwfY9fn>p0hSc@7$d{Cr_)K39jg_7J1TY{SV^Q<;uKE?n)BFQb)4cyp-v*0KA<>=%kHxGlY=E1%;*sRiGI=)4kkW"
        "ja8dGYf@EwsHl^=ViCtSJAfQ8lBn{x}4Hwq|Sv*a1q%K*B^DL?^mf|dU)3JObbO?oyBL{b6k(w`0QDpX`7}!U?o<S^m|eHwLt7FCG?vFZrI3"
        "@cTm<*wtRV+jB#A{Gh#QwoYAZBjI=^!&ez9dKX>H0?ws_ksnzw5oVEC5@w<xm+e`1TGjR2|IB{NC2>PsiS$QoCva;yaU0C@7GXM5wMpm0`CA"
        "GH68h4&{O*Si@TV;KYieL;zz`ezFo{TUKig02VFd=7ST6xeVf}d_K<x<!!Aishwgv|wIb580w&h#mm#Vt(&XjM@VHC35q2;dnJd?&_Ds&Qko"
        "JC3SOd=+?D2M!PI1@Q13?$}k|FtPWTUB!*U$4%LGUq2q^fx~0uxp?>n$J3DGR&mqj)NvRh<4`;k+0V!0$9=|wA2>Xc19%w9=Dj{1rzIW^r=D"
        "kuzF^cu9I7t13bqVCWUL`0qU|GNX@`vUQh4kaV`+zs^-_53A7jOce7nzxumgw4kpV<bE1Ri4BFA9X6o17qj=yY!J{y4tw{-d6gE?)t|25ox3"
        ";uWq9(*W14{s>}HK>2_EB1iH|9-UN6FbDWuh`G9>Uz=Z;Tt<X|35#8Ar<-`D<Wcs"
    )
)
"""highdicom 0.28.2: `Segmentation` of a stack in falling order of an oblique series, BINARY."""
CONTOURS = zlib.decompress(
    base64.b85decode(
        "c-qC7Pj6mF6~?cf@XF9)IRRA_LeUFC2u05A%$b=pGhS3llU6cv<KWnc#VfT@>VVbAjS{C)B!nu|1q)Pl#gY}`10Ytc5o?w#yFh#ZmMnnZnR}"
        "Ba^(Cp~C`7UE`)AIXGtYU>bI!Qy{=fgOY+inQndjct>F!TFm%F8I`we^YZ)ut5-sZW^_tKZ>dheVoed>K5`Qdl*ePGQgR$UxciT14PgBIsv="
        "u00f7E!d+QgSXKJ8_|Cs4;tATq@32i6uu}?$+>g_6xi5jvdbO&9|SjgYQ<luXJA{=*{cf?`-bOF<!xHg-^tZdLMZIjc%3qUL?fYXBUWIzS6z"
        "YowHA$dd8LR)$ZcMRVO&(N;hw~uXNuTpKg5m@%e6xd1v?f?#|xj-IeZ6H{<<}?%zE)BG!+dc<0szo7czZr)y?=_vpg?ql4S`*1*&9_>=h>yV"
        "@(yt6{&jb{c!Gtqsrl_#AxByRSDiAD&nEWc3*cXs$_8@(CzX1;vm<D5bjOv$$GIa8>KPYa8J2%ox+mEstlucXapu&7&EadOUA4_tlBK%?R{g"
        "OI`Qx|8$@IbIJVeJP~o|X6|hFw{gW^mkgh4XI?#)>0k`A-+aG!=E*b9+&8=5j2=E|d#paOhiAnr-O;#0yJ3%SJ%vruc6s@6A9y*5wVcR0oX9"
        "$!$U2?KTETwa{k9vhzru6ozWaz#-#f;I@3+d?I{0w^F5my4ad76et-G|hyZ!d1-ObB$^Yz2We98atWwC7S-#VJVfAHSn{)4A@oVnV4xHd%jh"
        "nH-{`L=>eS-1tiS#h!Z<fUQ7&rfxYQ?Ga330X07Z?vkpytRG(%`5L*+q!i1(hhsQHDDBH?pn9XZWnBQiK%M#Ii##1Eqv}nQXfN(l55SnsJ+j"
        "=s0&q#B5sQdQhEvEbM+ca(U>tSy{qT}2C6Z|fLX4wO2tp{!TV;GeD&hhXO~MZW|fssBqAL#6vsz)NR1k!PZ{S4yJ`x{G7u;+$ifp+P{}T8h_"
        "+uevq(U-I%HU*ug%QW;G8D$EJTqPf^#9}T*QaylA2wXnnK6~Mf9QB1w6&VJ54E@RWTuR$*F`=Ltc2_yGWdbgU%<(!|@_&AJ__8C6I+kpG#7g"
        "M0_opn<4S~K&x;>9+DZRJ_X6q(<jumEJ*BK@EJTkGRl_IhJhVHuCT2ET6Muk26@bAFX<4S4i(L-U;uo@5?C!#^&ppolSV$3NoWKvL?qtZe{t"
        "FDc*z1^gYZez$yDH7VhDJS$*~WH5LJD!){uz8hsn&N&U6w0s6q!Ba*+yW;3O`_n$slF03pzKI3FIXFTt3mPNayTU@iF=ty}%e^7E;|@QfNPb"
        "F0BWFAX(_5->7w?iz__;Zq-#1JnO9l%pCgiC#G(6(WUJn+JZA->i;CDFFZ$Ui*}t0t%VO6uJpDkU`9Yx>za#*~u{phzjQ**;Y<cQgmw0wV(q"
        "FA9{QMVTSF(S8Y2ZsHc$=Y$Y2*@?m%J2@bi&w%7|(kS!D?_<~^^`gWl%Vt^3Y=naEJl@qg1(mZJh<vCfT#9>Z==SFWw2~tjpI1^h>hRPX{wM"
        "=pFO@Nuk8wlj8kDf`5IYlP0VZ#zonox}2VN}CF<<t;UNVPbbNJV2#d``@XUy3<@Y0ODI1twaH6?UWu4aJltA&v-N$<pA7P$)Q~mx}|irDr@<"
        "fJgn23QKrmh6{E;1=$3@a21_v@H5U~R~mW9J1PXd(0^}mFh)`5p0lNBWtf^T1UCm$n*g=ij*w2tHq6Ockr%)QQPh&eIb6lm_*=+{mA58BY~+"
        "CxaGc=iD`;AiIGnPjr%EV#oiqeeR8>$*6b98&qpL?c=o`hufNXL+5vt`WMR<{_{c7z7ZD#*~GO0+O#D)zc6L2<Q_@Ubn6`-45G9J@yWFi@jJ"
        "HLKToj-l4&VTOIz#SJU7o|9m;Alsptx!<OPEVU|sFIt)2~2_uEr3&I7!Zrqh_e<DN|P(+0+3OMg@S5A#61WNFSHrE3YBI_U1ie&>)a{EaRam"
        "gxWK+@D>z4&pkwoiw_Y(cR+kJmWQL2Dj?mJu5-KUyX{}H#VM_jSnbNRh#SC@fR#qxq#g>@_IU!1CeWY1J0OYF>JP6cbN3n|xt;52Iwj&o!;w"
        "i?HYAP7blE&lg-UCK7oAHzkPINECNeIxChnivVsSFfi{>)dhYf&_<t(4Nhb9!yHy#%3b<$=#+7+M>vlUDRcz(v@+8m4NyF+x!Pz`*DcEsaxQ"
        "qJ2<T0Vi4-X``^5*wkh|GKaTmWSAyE(^`y!7ihW}0(%OcnTOoiggBWEyHBH49#7QZ04Y_BwA1uBLM!B{^h0pSPlq#!XC7((0TNh95I@yVGtL"
        "CQ785x|dTMMkX9Fllbiyp+OahLvoO=0qyiHg&{_*tZlRHzpO=n@4+&?`%PVU|FsbBxB`fb{8-!~<09c)1%+nzg1FXr|TTMU2i1`RPmS5xES>"
        "=t0^z)Qw%rff2w+XPbS6Xct|#Bkwd6cIYQkvZ9Di6v89W(H<lSDQd>WFtuE=@~C+Qj9gj01DA<mRA;eVd4!;2{t)Vlc6?Eo3=zA;kj1R-`qx"
        "5x?pQ#2m)iH$V9A$<nGdonF$AE|1lzKg=rm=;RME0*tk$D7O_c-LTY3dAb|C>ubhLk(U&@)S1}Gy$8;|hJ16C9(=z2jN3^Dme5PuXB0VfyVH"
        "mP@#UhvBYfIw-j@hJ`g0njlf*mFeId8P_$RPrBTbt6j3<kUO*f>dfhCC5#tF5a`FJ@{Qu>EYr7FlM>L#*st24DDy6Eck2_yCoB>qGX}ECvPS"
        "i(5i%(2@z{1(wkne4~3slG?j=y5T}=mmw}tc8N+2ACnxejyd6w*#xea*oG`p$qcO1cAyV2A*U+0Ik5pIbMIyPZCxNE@p?SYhuUR-z4)kmdHn"
        "m-FPcLA@{x*s{OHxMx*cBaKDe{Las7i^N9#K`4u878asIXQ>u(+0zP;hrx9{Azd2sY#1HoC}{n^3I_Ye2)-P`c%TL*{xpTC#&yZblZyYRu`?"
        "FSpTZrr}NKXbnu|0?qP_WWWLGJibM7Zt^-TW&hOclFY>YdhONe)GzI0VCmoIR"
    )
)
"""rt-utils 1.2.7: `add_roi` of both masks on the same series."""
